# Checkpoints re-stacked from their parents' layers, by byte ranges: local, unless one averages weights.


rule merge:
    input:
        inputs("merge"),
    output:
        "results/checkpoints/merge-{hash}.json",
    log:
        "results/logs/merge-{hash}.log",
    localrule: merges_are_copies()
    conda:
        "../../envs/strata.yaml"
    threads: threads_of("merge")
    resources:
        mem_mb=need("merge", "mem_mb"),
        runtime=need("merge", "runtime"),
        disk_mb=need("merge", "disk_mb"),
        gpu=need("merge", "gpu"),
        variants=names_of("merge"),
    params:
        recipe=recipe("merge"),
    shell:
        "python -m strata merge {params.recipe:q} --log {log:q}"
