"""The published label lists of BinEgo-360 / 360+x.

Source: x360dataset/x360dataset-kit, configs/; actions have ids 1..34 (0 is background), scenes 0..27. The order
of the tuples is the order of the ids.
"""

BINEGO360_ACTIONS: tuple[str, ...] = (
    "walking", "operating phone", "pouring", "eating", "playing card games", "opening", "housekeeping",
    "moving things", "dressing", "workout", "drinking", "speaking", "operating computer", "standing",
    "playing instrument", "sitting", "laughing", "coughing", "preparing food", "cooking", "firework", "flashing",
    "playing", "reading", "farming", "dancing", "smoking", "driving", "clapping", "running", "hygiene practices",
    "photographing", "selling", "pushing",
)  # fmt: skip

BINEGO360_SCENES: tuple[str, ...] = (
    "Indoor Residential Spaces", "Indoor Entertainment Venues", "Transportation Interiors", "Kitchen", "Nature",
    "Indoor sports venues", "Indoor Shops & Retail& Commercial", "Dining & Food Outlets", "Bars & Nightlife",
    "Outdoor Residences & Living", "Agriculture & Rural", "Urban Constructions & street", "Outdoor Transportation",
    "Open Public Spaces", "Outdoor Commercial & Markets", "Outdoor Sports & Athletic Fields",
    "Parks & Recreational Areas", "Campus", "Indoor Educational Spaces", "Artistic Spaces",
    "Public Gathering & Conference Spaces", "Hotel & Temporary Stay", "Waterfronts & Water Bodies",
    "Historic & Religious Sites", "Scientific interior space", "Workspaces", "Storage & Utility",
    "Elevators & Escalators&Stairs",
)  # fmt: skip
