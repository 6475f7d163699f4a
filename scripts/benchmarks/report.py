"""The tables, the budgets and the file that --json names."""

import json
import os
import platform
import re
import sys

from .processes import read


def median(samples):
    ordered = sorted(samples)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def p90(samples):
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.9))]


def plain(value):
    return str(int(value)) if value == int(value) else f"{value:.1f}"


WIDTH = 33  # of the names in a table


class Report:
    def __init__(self):
        self.rows = []
        self.budgets = []

    def section(self, title):
        self.title = title
        print(f"\n{title}\n  {'':<{WIDTH}}{'n':>5}{'median':>12}{'p90':>12}")

    def table(self, title, columns):
        """A section whose lines have columns of their own; cells() makes one."""
        self.title, self.columns = title, columns
        print(f"\n{title}\n  {'':<{WIDTH}}" + "".join(f"{column:>12}" for column in columns))

    def cells(self, who, values, note=""):
        """One line of a table; without values: of what could not be taken."""
        shown = [plain(value) for value in values] or ["-"] * len(self.columns)
        print(f"  {who:<{WIDTH}}{''.join(f'{cell:>12}' for cell in shown)}   {note}".rstrip(), flush=True)
        self.rows.append({"figure": self.title, "who": who, **dict(zip(self.columns, values)), "note": note})

    def row(self, who, samples, note=""):
        """One line of the table; gives the median back."""
        middle, high = median(samples), p90(samples)
        print(f"  {who:<{WIDTH}}{len(samples):>5}{plain(middle):>12}{plain(high):>12}   {note}".rstrip(), flush=True)
        self.rows.append(
            {"figure": self.title, "who": who, "n": len(samples), "median": middle, "p90": high, "note": note}
        )
        return middle

    def gap(self, who, why):
        """The line of a figure that could not be taken: `absent`, or what went wrong."""
        print(f"  {who:<{WIDTH}}{'-':>5}{'-':>12}{'-':>12}   {why}", flush=True)
        self.rows.append({"figure": self.title, "who": who, "n": 0, "note": why})

    def say(self, lines):
        """Words that stand below a table."""
        for line in lines:
            print(f"  {line}".rstrip(), flush=True)

    def budget(self, what, value, limit, met=lambda value, limit: value <= limit, words=""):
        """None as value or limit: could not be measured, which counts as missed."""
        if value is None or limit is None:
            verdict = "NOT MEASURED"
        else:
            verdict = "met" if met(value, limit) else "MISSED"
        self.budgets.append({"budget": what, "value": value, "limit": limit, "words": words, "verdict": verdict})

    def close(self):
        """Prints the budgets and gives the exit status."""
        print(f"\nbudgets\n  {'':<60}{'measured':>12}{'budget':>12}")
        shown = lambda value: "-" if value is None else plain(value)
        for budget in self.budgets:
            line = f"  {budget['budget']:<60}{shown(budget['value']):>12}{shown(budget['limit']):>12}"
            print(f"{line}   {budget['verdict']:<13}{budget['words']}".rstrip())
        missed = [budget["budget"] for budget in self.budgets if budget["verdict"] != "met"]
        for what in missed:
            print(f"bench: budget missed: {what}", file=sys.stderr)
        return 1 if missed else 0

    def write(self, path, **more):
        with open(path, "w") as file:
            json.dump({**more, "figures": self.rows, "budgets": self.budgets}, file, indent=2)
            file.write("\n")


def machine():
    model = re.search(r"^model name\s*: (.*)$", read("/proc/cpuinfo"), re.MULTILINE)
    return {
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": model.group(1) if model else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],  # a machine at work on something else gives poor figures
    }
