"""The progress bar of long measurements."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None]]:
    """A bar with the time left; gives the function that `profile` takes as `progress`. Without a terminal nothing is
    drawn."""
    with tqdm(total=1000, unit="‰", bar_format="{l_bar}{bar}| {elapsed}, {remaining} left", disable=None) as bar:

        def show(label: str, fraction: float) -> None:
            bar.set_description_str(label)
            bar.update(round(1000 * fraction) - bar.n)

        yield show
