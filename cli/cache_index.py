"""`talstack cache index`: the table of everything in a feature store."""

import json
from collections import Counter
from pathlib import Path

import click


@click.command("index")
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--rebuild", is_flag=True, help="Open every file, whatever the index that is there says.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a line.")
def command(store: Path, rebuild: bool, as_json: bool) -> None:
    """Write STORE/index.parquet: one row per shard and recorded failure, for `cache ls` and for your own queries.

    Columns: path, recipe, recording, view, modality, fingerprint, outcome, reason, rows, valid (rows that hold
    features), size_bytes, mtime_ns, made_s, worker, identity, check. It follows from the shards and the workers'
    journals, nothing depends on it, and it may be removed at any time.
    """
    from talstack.io.store_contents import scan_store
    from talstack.io.store_index import index_path, update_index

    made = update_index(scan_store(store), rebuild=rebuild)
    outcomes = Counter(made.table["outcome"].to_list())
    counts = {name: outcomes[name] for name in ("done", "failed", "unreadable")}
    if as_json:
        click.echo(json.dumps({"index": str(index_path(store)), **counts, "num_read": made.num_read}))
        return
    listed = ", ".join(f"{count} {name}" for name, count in counts.items())
    click.echo(f"{index_path(store)}: {made.table.height} rows ({listed}); {made.num_read} files were read")
