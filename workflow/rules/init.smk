# Pinned inputs, and base models made from them.


# Local: compute nodes have no internet.
rule fetch:
    output:
        "results/sources/fetch-{hash}.json",
    log:
        "results/logs/fetch-{hash}.log",
    localrule: True
    conda:
        "../../envs/strata.yaml"
    resources:
        location=location,
    params:
        recipe=recipe("fetch"),
    shell:
        "python -m strata fetch {params.recipe:q} --location={resources.location:q} --log {log:q}"


rule init:
    input:
        inputs("init"),
    output:
        "results/checkpoints/init-{hash}.json",
    log:
        "results/logs/init-{hash}.log",
    conda:
        "../../envs/strata.yaml"
    threads: threads_of("init")
    resources:
        mem_mb=need("init", "mem_mb"),
        runtime=need("init", "runtime"),
        disk_mb=need("init", "disk_mb"),
        gpu=need("init", "gpu"),
        variants=names_of("init"),
    params:
        recipe=recipe("init"),
    shell:
        "python -m strata init {params.recipe:q} --log {log:q}"
