"""The configuration: defaults, masks, the epoch, and errors that a person can act on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cco.config import Config, ConfigError, Indicator, make_config, parse_config

FULL = """
primary = "buy"
anti_correlations = true
max_staleness = "90s"
[indicators.buy]
removed_by = ["return"]
user_cap = 500
[indicators.view]
events = ["view", "buy"]
weight = 2
[indicators.love]
removed_by = ["hate", "return"]
[retention]
sampling = "recent"
window = "30d"
visitor_window = "none"
[priors]
popular = "12h"
recent = "none"
hot = 3600
"""


def errors(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "cco.toml")
    return str(caught.value).split("\n")


def test_defaults() -> None:
    config = Config()
    assert config.indicators == {"purchase": Indicator(events=("purchase",))}
    assert config == parse_config("", "cco.toml")
    assert (config.indicator_names, config.event_types) == (("purchase",), ("purchase",))
    assert config.prior_names == ("popular", "recent")
    assert config.retention.visitor_window == 90 * 86_400
    assert config.retention.window is None
    assert config.max_staleness == 60.0
    assert Config(primary="buy").indicators["buy"].events == ("buy",)


def test_full_file() -> None:
    config = parse_config(FULL, "cco.toml")
    assert config.indicator_names == ("buy", "love", "view")
    assert config.event_types == ("buy", "hate", "love", "return", "view")
    assert config.add_mask.tolist() == [0b101, 0, 0b010, 0, 0b100]
    assert config.remove_mask.tolist() == [0, 0b010, 0, 0b011, 0]
    assert config.add_mask.dtype == config.remove_mask.dtype == "uint32"
    assert config.add_mask is config.add_mask
    assert config.prior_names == ("hot", "popular")
    assert (config.priors.popular, config.priors.hot, config.retention.window) == (43_200, 3_600, 30 * 86_400)
    assert config.max_staleness == 90.0
    assert config.retention.visitor_window is None


def test_thirty_one_indicators_fill_the_mask() -> None:
    data = {"primary": "p", "indicators": {"p": {}, **{f"i{k:02}": {"events": ["e"]} for k in range(30)}}}
    config = make_config(data)
    assert config.add_mask.tolist() == [2**31 - 2, 1]  # e, p
    data["indicators"]["one-more"] = {}  # type: ignore[index]
    with pytest.raises(ConfigError, match="config: indicators: 32 of them; at most 31"):
        make_config(data)


def test_epoch_follows_what_decides_retention() -> None:
    base = parse_config(FULL, "x").epoch
    assert base == parse_config(FULL.replace("weight = 2", "weight = 3"), "y").epoch
    assert base == parse_config(FULL.replace('["view", "buy"]', '["buy", "view"]'), "y").epoch
    assert base == parse_config(FULL.replace("true", "false").replace('"90s"', "5"), "y").epoch
    changes = [
        FULL.replace("user_cap = 500", "user_cap = 501"),
        FULL.replace('"30d"', '"31d"'),
        FULL.replace('"hate", ', ""),
        FULL.replace("hot = 3600", "hot = 3601"),
        FULL.replace("[priors]", "seed = 1\n[priors]"),
    ]
    epochs = {parse_config(text, "z").epoch for text in changes}
    assert len(epochs) == len(changes)
    assert base not in epochs
    assert len(base) == 16


def test_unknown_keys_name_the_nearest() -> None:
    lines = errors('prmary = "a"\n[indicators.purchase]\nuser_capp = 3\n[retention]\nsamplng = "recent"\n')
    assert len(lines) == 3
    assert any(line.startswith('cco.toml: prmary: unknown key (did you mean "primary"?)') for line in lines)
    assert any('cco.toml: indicators.purchase.user_capp: unknown key (did you mean "user_cap"?)' in x for x in lines)
    assert any('retention.samplng: unknown key (did you mean "sampling"?); known here: sampling,' in x for x in lines)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (
            "[indicators.purchase]\nuser_cap = 0",
            "indicators.purchase.user_cap: 0 is not allowed; allowed: a whole number",
        ),
        ("[indicators.purchase]\nuser_cap = true", "indicators.purchase.user_cap: True is not allowed"),
        ("[indicators.purchase]\ntop_k = 1001", "top_k: 1001 is not allowed; allowed: a whole number, 1 to 1000"),
        ("[indicators.purchase]\nmin_llr = nan", "min_llr: nan is not allowed"),
        ("[indicators.purchase]\nmin_llr = -1", "min_llr: -1 is not allowed"),
        ("[indicators.purchase]\nweight = 0", "weight: 0 is not allowed; allowed: a number from 1e-6 to 1e6"),
        ("[indicators.purchase]\nweight = 1e300", "weight: 1e+300 is not allowed; allowed: a number from 1e-6 to 1e6"),
        ("indicators = {purchase = 3}", "3 is not allowed; allowed: a table [indicators.purchase]"),
        ('"" = 1', 'cco.toml: "": unknown key'),
        ('[indicators.purchase]\n"a b" = 1', 'cco.toml: indicators.purchase."a b": unknown key'),
        ("[indicators.purchase]\nweight = inf", "weight: inf is not allowed"),
        ('[indicators.purchase]\nevents = "buy"', "events: 'buy' is not allowed; allowed: a list of event types"),
        (
            '[retention]\nsampling = "recnt"',
            'sampling: \'recnt\' is not allowed (did you mean "recent"?); allowed: "uni',
        ),
        (
            '[retention]\nsampling = "recent"\nwindow = "30x"',
            "window: '30x' is not allowed; allowed: a duration such as",
        ),
        ("[retention]\nsource_partitions = 1025", "source_partitions: 1025 is not allowed"),
        ('[priors]\npopular = "some"', "popular: 'some' is not allowed; allowed: \"all\", a duration"),
        ('max_staleness = "soon"', "max_staleness: 'soon' is not allowed; allowed: a duration"),
        ("max_staleness = 0", "max_staleness: 0 is not allowed"),
        ("retention = 3", "retention: 3 is not allowed; allowed: a table [retention]"),
        ("indicators = 3", "indicators: 3 is not allowed; allowed: tables"),
        ('[retention]\nwindow = "3d"', 'retention.window needs sampling = "recent"'),
        ("[indicators.purchase]\nuser_cap = 3\n[retention]\nmin_primary = 4", "retention.min_primary: 4 is more than"),
        ("[indicators.view]", 'primary: "purchase" is not among the indicators (view)'),
        ("[indicators]", 'primary: "purchase" is not among the indicators (none)'),
        (
            '[indicators.purchase]\nremoved_by = ["purchase"]',
            'indicators.purchase: "purchase" is in events and in remov',
        ),
        ('[indicators.purchase]\nevents = ["a", "a"]', 'indicators.purchase.events: "a" is there twice'),
        ("[indicators.purchase]\nevents = []", "indicators.purchase.events: is empty"),
        ('[indicators.purchase]\nevents = ["$delete"]', "names that begin with $ are taken"),
        ('[indicators.purchase]\nevents = [""]', "the event type '' is empty"),
        ('[indicators.purchase]\n[indicators."a b"]', 'indicators."a b": a name is a letter and'),
        ("[indicators.purchase]\n[indicators.priors]", 'the name "priors" is taken'),
        ("[indicators.purchase]\n[indicators.purchase]", "not valid TOML"),
        ("x = ", "not valid TOML"),
        ("x = " + "[" * 20_000, "not valid TOML"),
    ],
)
def test_what_is_wrong_is_said(text: str, part: str) -> None:
    lines = errors(text)
    assert len(lines) == 1
    assert lines[0].startswith("cco.toml: ")
    assert part in lines[0]


@given(st.text(max_size=60) | st.sampled_from(FULL.split("\n")).map(lambda line: FULL.replace(line, line[::-1])))
def test_any_text_is_a_config_or_a_config_error(text: str) -> None:
    try:
        assert isinstance(parse_config(text, "x"), Config)
    except ConfigError as error:
        assert all(line.startswith("x: ") for line in str(error).split("\n") if "not valid TOML" not in str(error))
