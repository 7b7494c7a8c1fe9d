# Files for llama.cpp: one in float16, from which it makes the smaller ones.


rule gguf:
    input:
        inputs("gguf"),
    output:
        "results/gguf/gguf-{hash}.json",
    log:
        "results/logs/gguf-{hash}.log",
    conda:
        "../../envs/strata.yaml"
    threads: threads_of("gguf")
    resources:
        mem_mb=need("gguf", "mem_mb"),
        runtime=need("gguf", "runtime"),
        disk_mb=need("gguf", "disk_mb"),
        gpu=need("gguf", "gpu"),
        variants=names_of("gguf"),
    params:
        recipe=recipe("gguf"),
    shell:
        "python -m strata gguf {params.recipe:q} --log {log:q}"


rule quantize:
    input:
        inputs("quantize"),
    output:
        "results/gguf/quantize-{hash}.json",
    log:
        "results/logs/quantize-{hash}.log",
    conda:
        "../../envs/strata.yaml"
    threads: threads_of("quantize")
    resources:
        mem_mb=need("quantize", "mem_mb"),
        runtime=need("quantize", "runtime"),
        disk_mb=need("quantize", "disk_mb"),
        gpu=need("quantize", "gpu"),
        variants=names_of("quantize"),
    params:
        recipe=recipe("quantize"),
    shell:
        "python -m strata quantize {params.recipe:q} --log {log:q}"
