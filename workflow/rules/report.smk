# Names for checkpoints, and the table.


# One job for the whole link tree; names that are gone are dropped.
rule links:
    input:
        all_checkpoints(),
    output:
        "results/variants/.links.json",
    log:
        "results/logs/links.log",
    localrule: True
    conda:
        "../../envs/strata.yaml"
    params:
        names=names_digest(),
        files=CONFIG_FILES,
    shell:
        "python -m strata links --configfile {params.files:q} --log {log:q}"


# `snakemake results/variants/NAME.json` builds and scores one variant.
rule variant:
    input:
        results_of_variant,
    output:
        "results/variants/{name}.json",
    log:
        "results/logs/variant-{name}.log",
    localrule: True
    conda:
        "../../envs/strata.yaml"
    params:
        files=CONFIG_FILES,
    shell:
        "python -m strata variant {wildcards.name:q} --configfile {params.files:q} --log {log:q}"


rule report:
    input:
        all_results(),
    output:
        csv="results/report/scores.csv",
        markdown="results/report/scores.md",
        latex="results/report/scores.tex",
        html="results/report/report.html",
    log:
        "results/logs/report.log",
    localrule: True
    conda:
        "../../envs/strata.yaml"
    params:
        names=names_digest(),
        files=CONFIG_FILES,
    shell:
        "python -m strata report --configfile {params.files:q} --log {log:q}"
