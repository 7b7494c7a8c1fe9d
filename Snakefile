# Strata: sources -> init -> (analyze, screen ->) merge -> (tokenize -> train ->) evaluate -> (gguf, publish ->) report.
# Every checkpoint is named by what it is made from.
from snakemake.utils import min_version

min_version("9.16")


include: "workflow/rules/common.smk"


configfile: "config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/init.smk"
include: "workflow/rules/analyze.smk"
include: "workflow/rules/screen.smk"
include: "workflow/rules/merge.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/gguf.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/run.smk"


rule all:
    default_target: True
    input:
        rules.report.output,
        rules.links.output,
        all_results(),
        all_published(),
    localrule: True


onstart:
    require_scheduler()
    require_llama()
    keep_what_is_needed()
    watch_cluster()


onsuccess:
    say_where_the_report_is()


onerror:
    report_what_there_is()
