# One checkpoint on one task group.


rule evaluate:
    input:
        inputs("evaluate"),
    output:
        "results/evaluations/evaluate-{hash}.json",
    log:
        "results/logs/evaluate-{hash}.log",
    conda:
        "../../envs/strata.yaml"
    threads: threads_of("evaluate")
    resources:
        mem_mb=need("evaluate", "mem_mb"),
        runtime=need("evaluate", "runtime"),
        disk_mb=need("evaluate", "disk_mb"),
        gpu=need("evaluate", "gpu"),
        variants=names_of("evaluate"),
    params:
        recipe=recipe("evaluate"),
    shell:
        "python -m strata evaluate {params.recipe:q} --log {log:q}"
