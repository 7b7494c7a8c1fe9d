# Training: tokens and reference log-probabilities once, then a checkpoint with its parent's layers.


rule tokenize:
    input:
        inputs("tokenize"),
    output:
        "results/tokens/tokenize-{hash}.json",
    log:
        "results/logs/tokenize-{hash}.log",
    conda:
        "../../envs/strata.yaml"
    threads: threads_of("tokenize")
    resources:
        mem_mb=need("tokenize", "mem_mb"),
        runtime=need("tokenize", "runtime"),
        disk_mb=need("tokenize", "disk_mb"),
        gpu=need("tokenize", "gpu"),
        variants=names_of("tokenize"),
    params:
        recipe=recipe("tokenize"),
    shell:
        "python -m strata tokenize {params.recipe:q} --log {log:q}"


rule reference:
    input:
        inputs("reference"),
    output:
        "results/references/reference-{hash}.json",
    log:
        "results/logs/reference-{hash}.log",
    conda:
        "../../envs/strata.yaml"
    threads: threads_of("reference")
    resources:
        mem_mb=need("reference", "mem_mb"),
        runtime=need("reference", "runtime"),
        disk_mb=need("reference", "disk_mb"),
        gpu=need("reference", "gpu"),
        variants=names_of("reference"),
    params:
        recipe=recipe("reference"),
    shell:
        "python -m strata reference {params.recipe:q} --log {log:q}"


# How many processes train is a resource and no parameter: the weights are those of the recipe. A job that is stopped
# by a signal ends with 75, and the next attempt goes on from its snapshot: `exec`, so that no shell dies of the signal
# before the snapshot is written.
rule pretrain:
    input:
        inputs("pretrain"),
    output:
        "results/checkpoints/pretrain-{hash}.json",
    log:
        "results/logs/pretrain-{hash}.log",
    conda:
        "../../envs/strata.yaml"
    threads: threads_of("pretrain")
    resources:
        **across_nodes("pretrain"),
        mem_mb=need("pretrain", "mem_mb"),
        runtime=need("pretrain", "runtime"),
        disk_mb=need("pretrain", "disk_mb"),
        gpu=need("pretrain", "gpu"),
        variants=names_of("pretrain"),
        processes=need("pretrain", "processes"),
        nodes=need("pretrain", "nodes"),
    params:
        recipe=recipe("pretrain"),
    shell:
        "exec python -m strata pretrain {params.recipe:q} --processes={resources.processes:q}"
        " --nodes={resources.nodes:q} --log {log:q}"


rule sft:
    input:
        inputs("sft"),
    output:
        "results/checkpoints/sft-{hash}.json",
    log:
        "results/logs/sft-{hash}.log",
    conda:
        "../../envs/strata.yaml"
    threads: threads_of("sft")
    resources:
        **across_nodes("sft"),
        mem_mb=need("sft", "mem_mb"),
        runtime=need("sft", "runtime"),
        disk_mb=need("sft", "disk_mb"),
        gpu=need("sft", "gpu"),
        variants=names_of("sft"),
        processes=need("sft", "processes"),
        nodes=need("sft", "nodes"),
    params:
        recipe=recipe("sft"),
    shell:
        "exec python -m strata sft {params.recipe:q} --processes={resources.processes:q}"
        " --nodes={resources.nodes:q} --log {log:q}"


rule dpo:
    input:
        inputs("dpo"),
    output:
        "results/checkpoints/dpo-{hash}.json",
    log:
        "results/logs/dpo-{hash}.log",
    conda:
        "../../envs/strata.yaml"
    threads: threads_of("dpo")
    resources:
        **across_nodes("dpo"),
        mem_mb=need("dpo", "mem_mb"),
        runtime=need("dpo", "runtime"),
        disk_mb=need("dpo", "disk_mb"),
        gpu=need("dpo", "gpu"),
        variants=names_of("dpo"),
        processes=need("dpo", "processes"),
        nodes=need("dpo", "nodes"),
    params:
        recipe=recipe("dpo"),
    shell:
        "exec python -m strata dpo {params.recipe:q} --processes={resources.processes:q}"
        " --nodes={resources.nodes:q} --log {log:q}"
