# Plans scored before any is built, and the best of them trained on in rounds.


rule screen:
    input:
        inputs("screen"),
    output:
        "results/screens/screen-{hash}.json",
    log:
        "results/logs/screen-{hash}.log",
    conda:
        "../../envs/strata.yaml"
    threads: threads_of("screen")
    resources:
        mem_mb=need("screen", "mem_mb"),
        runtime=need("screen", "runtime"),
        disk_mb=need("screen", "disk_mb"),
        gpu=need("screen", "gpu"),
        variants=names_of("screen"),
    params:
        recipe=recipe("screen"),
    shell:
        "python -m strata screen {params.recipe:q} --log {log:q}"


rule race:
    input:
        inputs("race"),
    output:
        "results/screens/race-{hash}.json",
    log:
        "results/logs/race-{hash}.log",
    conda:
        "../../envs/strata.yaml"
    threads: threads_of("race")
    resources:
        mem_mb=need("race", "mem_mb"),
        runtime=need("race", "runtime"),
        disk_mb=need("race", "disk_mb"),
        gpu=need("race", "gpu"),
        variants=names_of("race"),
    params:
        recipe=recipe("race"),
    shell:
        "python -m strata race {params.recipe:q} --log {log:q}"
