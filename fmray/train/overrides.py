"""Asks DeepSpeed itself, before any worker starts, whether it takes a config that was overridden."""

import logging
from collections.abc import Mapping
from typing import Any

from fmray.core.errors import ConfigError

WHERE_TO_LOOK = "see DeepSpeed's page on its configuration for the keys and values that it takes"


def check_overrides(config: Mapping[str, Any], overrides: Mapping[str, Any], where: str) -> None:
    """Refuses a DeepSpeed config that DeepSpeed would refuse in the workers. Without overrides nothing is imported, which takes seconds.

    Keys that DeepSpeed does not know are refused where it looks at them: below its sections, and not at the top, where it passes over them.

    Args:
        config: what `deepspeed_config` made with the overrides.

    Raises:
        ConfigError: it does not take it.
    """
    if not overrides:
        return
    # Its import tells which accelerator it found.
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError
    from pydantic import ValidationError

    try:
        # Its arithmetic of batches holds for one process here, as it does for any number.
        DeepSpeedConfig(dict(config))
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"DeepSpeed refuses the override: {first['msg']}", where=".".join([where, *map(str, first["loc"])]), todo=WHERE_TO_LOOK) from None
    except (DeepSpeedConfigError, ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"DeepSpeed refuses the override: {reason}", where=where, todo=WHERE_TO_LOOK) from None
