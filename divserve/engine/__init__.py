"""The engine: the scheduler, the workers, the models beside the served one, and the client.

Only this package, `divserve.startup` and `divserve.http.openai` import vLLM. Each place that
depends on its inner workings is an entry of `divserve.engine.seams`, which ``docs/seams.md`` shows
as tables: what is overridden, patched, copied, called, read and written, in which file, and what a
test compares. What differs between versions of vLLM is in `divserve.engine.compat`.

Start-up checks the version of vLLM (`divserve.startup.checks`), but no seam.
"""
