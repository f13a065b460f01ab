"""A plan as lines of text: all of it for `make plan`, a few lines before a build that costs something.

GB are 10^9 bytes, as GPUs and disks are sold.
"""

from collections.abc import Iterator

from instruct.conversations.lmsys import PASSPHRASE_VARIABLE
from recipes.plan import Fit, Plan
from recipes.plan.cost import Gpu, flops, gpu_bytes, gpu_parts, gpus
from recipes.plan.sets import TOKEN_VARIABLE, Size

COMPUTED = (
    "Computed from shapes unless a line says measured, assumed or estimate. 1 GB is 10^9 bytes; FLOPs are those of "
    "matrix products."
)


def plan_lines(plan: Plan) -> Iterator[str]:
    """The whole plan, for a terminal of 120 columns."""
    yield f"Plan of the recipe {plan.recipe}"
    yield COMPUTED
    training = (_flops(plan), _hours(plan), _gpu_memory(plan), _fits(plan)) if plan.runs else ()
    for lines in (*training, _times(plan), _stages(plan)):
        yield ""
        yield from lines
    yield ""
    yield from _downloads(plan)
    yield from _gates(plan)
    yield from _terms(plan)


def short_lines(plan: Plan) -> Iterator[str]:
    """Hours, disk, downloads and licences: what someone must know before it is spent."""
    needs = plan.needs
    if needs.gpu:
        rates = "; ".join(f"{plan.hours(gpu):,.0f} h on one {gpu.name}" for gpu in _holding(plan))
        yield f"{plan.recipe}: {plan.flops:.2e} FLOPs: {rates or 'no named GPU holds it alone'}"
        yield f"memory: {gigabytes(needs.gpu_bytes)} of GPU, {gigabytes(needs.ram_bytes)} of main memory"
    yield f"disk: {_disk(plan)}"
    unknown = [download.name for download in plan.downloads if download.bytes is None]
    more = f", and {', '.join(unknown)}, of sizes not known yet" if unknown else ""
    yield f"downloads: {gigabytes(plan.download_bytes)}{more}" if plan.downloads else "downloads: none"
    yield from _gates(plan)
    for terms in plan.terms:
        yield f"licence: {terms.name}: {terms.licence or 'not stated; read its card'}"


def gigabytes(count: float) -> str:
    """A number of bytes in GB, with two decimals below 10."""
    return f"{count / 1e9:,.0f} GB" if count >= 10e9 else f"{count / 1e9:,.2f} GB"


def _holding(plan: Plan) -> list[Gpu]:
    return [gpu for gpu in gpus() if gpu.memory_bytes >= plan.needs.gpu_bytes]


def _flops(plan: Plan) -> Iterator[str]:
    columns = ("teacher forward", "student forward", "student backward", "recomputation", "all")
    yield f"{'FLOPs':<19}{'tokens':>12}" + "".join(f"{column:>18}" for column in columns)
    for run in plan.runs:
        done = flops(run)
        cells = "".join(f"{value:>18.3e}" if value else f"{0:>18}" for value in (*done, done.total))
        yield f"  {run.stage:<17}{run.tokens / 1e9:>10.3f} B{cells}"
    yield "  Rows taken as full, each of one document; heads cropped to the tokenizer's ids; nothing is computed twice."


def _hours(plan: Plan) -> Iterator[str]:
    yield "Hours of training on one GPU, whether or not its memory is enough"
    for gpu in gpus():
        each = ", ".join(f"{run.stage} {gpu.hours(flops(run).total):,.2f}" for run in plan.runs)
        yield (
            f"  {gpu.name:<16}{plan.hours(gpu):>10,.2f} h  ({each}) at {gpu.utilisation:.0%} of "
            f"{gpu.peak_flop_per_s / 1e12:,.0f} TFLOP/s, {gpu.basis}"
        )
    yield "  Several GPUs hold more, and are no faster: the teacher's layers wait for one another."


def _gpu_memory(plan: Plan) -> Iterator[str]:
    yield "Memory of one GPU that holds everything"
    for run in plan.runs:
        rows = f"{run.micro_batch_rows} rows of {run.sequence_tokens:,} tokens at once"
        yield f"  {run.stage}: {gigabytes(gpu_bytes(run))}, {rows}"
        for what, size in gpu_parts(run).items():
            yield f"    {size / 1e9:>8.2f} GB  {what}"


def _fits(plan: Plan) -> Iterator[str]:
    yield "What fits, in one process (the teacher's layers over all GPUs, the student on the first)"
    for fit in plan.fits():
        verdict = "yes" if fit.fits else "no "
        yield f"  {fit.devices} x {fit.memory_bytes / 1e9:>3.0f} GB  {verdict}  {_rows(plan, fit)}"


def _rows(plan: Plan, fit: Fit) -> str:
    each = [
        f"{run.stage} {'does not fit with one row' if rows == 0 else f'takes up to {rows} rows at once'}"
        for run, rows in zip(plan.runs, fit.largest_micro_batch_rows, strict=True)
    ]
    return ", ".join(each)


def _stages(plan: Plan) -> Iterator[str]:
    yield "Disk and main memory by stage"
    for stage in plan.stages:
        memory = "" if stage.ram_bytes is None else f"; main memory {gigabytes(stage.ram_bytes)} ({stage.ram_basis})"
        if stage.kept or stage.scratch_bytes:
            used = f"{gigabytes(stage.kept_bytes):>10} kept, {gigabytes(stage.scratch_bytes):>9} more while it runs"
        else:
            used = f"{'little':>10}"
        yield f"  {stage.stage:<16}{used}{memory}"
        if stage.disk_basis:
            yield f"    {stage.disk_basis}"
    needs = plan.needs
    yield f"  {_disk(plan)}"
    yield "  dist/ has links to large files, and adds little; a build with other numbers keeps its files as well"
    if needs.ram_bytes:
        system = f"{gigabytes(needs.system_bytes)} for the system (estimate)"
        yield f"  main memory of {gigabytes(needs.ram_bytes)}: {system}, the rest for {needs.ram_for}"
    if any(one.text_bytes for stage in plan.stages for one in stage.reads):
        yield "  Text in a byte of a file (2.7 bytes in Parquet, 3 in gzip), bytes of a token (4.2; zipped 1.4), and"
        yield "  what cleaning takes (1.3 of the text): measured on real Japanese. 9 bytes a packed token: the format."


def _disk(plan: Plan) -> str:
    """The most that is there at once, and whether that is sure."""
    unknown = plan.needs.disk_unknown
    most = f"{gigabytes(plan.needs.disk_bytes)} on the disk at once"
    if not unknown:
        return f"at most {most}"
    return f"about {most}, and more for {', '.join(unknown)}, whose sizes are asked when the build starts"


def _times(plan: Plan) -> Iterator[str]:
    yield "Time of other stages"
    for stage in plan.stages:
        if stage.seconds is not None:
            hours = stage.seconds / 3600
            shown = f"{hours:,.1f} h" if hours >= 1 else f"{stage.seconds:,.0f} s"
            yield f"  {stage.stage:<16}{shown:>10}  ({stage.seconds_basis})"
    yield "  Not planned, since no rate of it was measured that would hold elsewhere: downloads, packing, cleaning of"
    yield "  conversations, evaluation (it grows with items, models and files)."


def _downloads(plan: Plan) -> Iterator[str]:
    yield "Downloads" if plan.downloads else "Downloads: none"
    for download in plan.downloads:
        yield f"  {_size(download):>10}  {download.name} ({download.how})"


def _size(download: Size) -> str:
    return "not known" if download.bytes is None else gigabytes(download.bytes)


def _gates(plan: Plan) -> Iterator[str]:
    for gate in plan.gates:
        state = "is set" if gate.is_open else "is not set"
        yield f"gated: {gate.name} ({gate.why}); {_what(gate.variable)} {gate.variable} {state} here"


def _what(variable: str) -> str:
    return {TOKEN_VARIABLE: "the account's token", PASSPHRASE_VARIABLE: "the passphrase"}.get(variable, "the variable")


def _terms(plan: Plan) -> Iterator[str]:
    yield "Licences to accept" if plan.terms else "Licences to accept: none"
    for terms in plan.terms:
        yield f"  {terms.name}: {terms.licence or 'not stated by its publisher where we read'}"
        for obligation in terms.obligations:
            yield f"    {obligation}"
