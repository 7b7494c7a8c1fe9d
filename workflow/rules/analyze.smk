# How much each layer of a checkpoint does on a calibration text: what pruning by importance rests on.


rule analyze:
    input:
        inputs("analyze"),
    output:
        "results/analyses/analyze-{hash}.json",
    log:
        "results/logs/analyze-{hash}.log",
    conda:
        "../../envs/strata.yaml"
    threads: threads_of("analyze")
    resources:
        mem_mb=need("analyze", "mem_mb"),
        runtime=need("analyze", "runtime"),
        disk_mb=need("analyze", "disk_mb"),
        gpu=need("analyze", "gpu"),
        variants=names_of("analyze"),
    params:
        recipe=recipe("analyze"),
    shell:
        "python -m strata analyze {params.recipe:q} --log {log:q}"
