"""Grids of an ablation: which variants they ask for."""

from pathlib import Path

from talstack.cli.ablation_grid import read_grid


def names(folder: Path, text: str) -> list[str]:
    (folder / "g.toml").write_text(text)
    return [variant.name for variant in read_grid(folder / "g.toml").variants]


def test_one_at_a_time_is_base_and_each_value_and_product_crosses_them(tmp_path: Path) -> None:
    lists = '[grid]\nheads.seed = [0, 1]\n"heads.class_weight" = ["sqrt"]\n'
    assert names(tmp_path, lists) == ["base", "heads.seed = 1", 'heads.class_weight = "sqrt"']
    crossed = [f'heads.seed = {seed}, heads.class_weight = "sqrt"' for seed in (0, 1)]
    assert names(tmp_path, 'mode = "product"\n' + lists) == crossed
    more = '[[variant]]\nname = "both"\nheads.seed = 2\nensemble.seed = 2\n'
    assert names(tmp_path, 'mode = "product"\n' + lists + more) == [*crossed, "both"]
    assert names(tmp_path, more) == ["base", "both"]


def test_settings_of_the_base_hold_for_every_variant(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[heads]\nseed = 4\ninner_folds = 5\n")
    text = '[base]\nconfig = "c.toml"\nheads.inner_folds = 4\n[grid]\nheads.seed = [7]\n'
    (tmp_path / "g.toml").write_text(text)
    base, changed = read_grid(tmp_path / "g.toml").variants
    assert (base.heads.seed, base.heads.inner_folds) == (4, 4)
    assert (changed.heads.seed, changed.heads.inner_folds) == (7, 4)
    assert changed.changes == {"heads.seed": 7}
