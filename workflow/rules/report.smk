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


# `strata upload NAME` alone uploads: no run does. The receipt beside the output is history, which Snakemake would remove
# before it runs the job again.
rule publish:
    input:
        results_to_publish,
    output:
        "results/published/.{name}.done",
    log:
        "results/logs/publish-{name}.log",
    localrule: True
    conda:
        "../../envs/strata.yaml"
    params:
        directory=lambda wildcards: EXPERIMENT.variants[wildcards.name].publish.directory,
        card=card_digest,
        files=CONFIG_FILES,
    shell:
        "python -m strata publish {wildcards.name:q} --configfile {params.files:q} --log {log:q} && touch {output:q}"


# The page of the screens, where the config has any.
PAGES = {}
if EXPERIMENT.screens:
    PAGES["screens"] = report(
        "results/report/screens.html",
        caption="../report/screens.rst",
        category="Report",
        labels={"what": "the screens", "format": "HTML"},
    )


rule report:
    input:
        all_results(),
        all_published(),
    output:
        **PAGES,
        csv=report(
            "results/report/scores.csv",
            caption="../report/table.rst",
            category="Table",
            labels={"what": "scores, unrounded", "format": "CSV"},
        ),
        markdown=report(
            "results/report/scores.md",
            caption="../report/table.rst",
            category="Table",
            labels={"what": "scores, to read", "format": "Markdown"},
        ),
        latex=report(
            "results/report/scores.tex",
            caption="../report/table.rst",
            category="Table",
            labels={"what": "scores, to print", "format": "LaTeX"},
        ),
        html=report(
            "results/report/report.html",
            caption="../report/page.rst",
            category="Report",
            labels={"what": "the whole report", "format": "HTML"},
        ),
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
