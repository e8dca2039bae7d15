"""The style of the page; it uses system fonts only and fetches nothing."""

import gradio as gr

SANS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace")

CSS = """
.gradio-container {max-width: 1240px !important; margin: 0 auto !important}
#head h1 {font-size: 1.6rem; font-weight: 650; margin: 0 0 .15rem}
#head p {color: var(--body-text-color-subdued); margin: 0; max-width: 46rem}
#status > div, #numbers > div {padding-left: 0; padding-right: 0}
#head {padding: .5rem 0 .25rem}
.status {font-size: .95rem; min-height: 2.9rem; display: flex; flex-direction: column; justify-content: center;
  gap: .45rem; color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums}
.status.busy, .status.done {color: var(--body-text-color)}
.status .bar {height: 6px; border-radius: 3px; background: var(--border-color-primary); overflow: hidden}
.status .bar span {display: block; height: 100%; border-radius: 3px; background: var(--color-accent);
  transition: width .3s}
.numbers {width: 100%; border-collapse: collapse; margin: 0; font-size: .95rem; font-variant-numeric: tabular-nums}
.numbers, .numbers thead, .numbers tbody, .numbers tr {border: 0 !important}
.numbers th, .numbers td {padding: .5rem .6rem !important; border: 0 !important;
  border-bottom: 1px solid var(--border-color-primary) !important}
.numbers th[scope=row] {text-align: left; font-weight: 400; color: var(--body-text-color-subdued);
  white-space: nowrap}
.numbers td, .numbers th[scope=col] {text-align: right}
.numbers th[scope=col] {font-weight: 600; white-space: nowrap}
.numbers tr:last-child th, .numbers tr:last-child td {border-bottom: 0 !important}
.note {color: var(--body-text-color-subdued); font-size: .875rem; margin: .75rem .6rem 0}
"""


def theme() -> gr.Theme:
    """Calm blue on slate."""
    return gr.themes.Default(
        primary_hue="blue", secondary_hue="blue", neutral_hue="slate", radius_size="md", font=SANS, font_mono=MONO
    ).set(block_label_text_size="*text_sm", block_title_text_weight="500")
