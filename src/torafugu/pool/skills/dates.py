"""The calendar and the clock."""

from __future__ import annotations

import calendar
import re
from collections.abc import Mapping
from datetime import date, datetime

from .reading import Skill, Worked

__all__ = ["DATES"]

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTH_NAMES = "January February March April May June July August September October November December"
_MONTHS = _MONTH_NAMES.split()  # not from `calendar`, whose names follow the locale
_DAY, _MONTH = "|".join(_DAYS), "|".join(_MONTHS)
_MAX_OFFSET_DAYS = 100_000
_ORDINALS = {"first": 0, "second": 1, "third": 2, "fourth": 3, "last": -1}

_LEAP = re.compile(r"\b([1-9]\d{0,3})\b(?: is)? a leap year", re.ASCII)
_RECURRING = re.compile(
    rf"\b(first|second|third|fourth|last) ({_DAY}) (?:of|in) ({_MONTH}) (\d{{4}})"
    rf"|\bIn ({_MONTH}) (\d{{4}}),[^.?\n]{{0,60}} the (first|second|third|fourth|last) ({_DAY})"
)
_FIRST_DAY = re.compile(
    rf"(?:first day of the year was a|January 1(?:st)? (?:fell on|was) a) ({_DAY})|where ({_DAY}) is January 1st"
)
_DATE = re.compile(rf"\b({_MONTH}) (\d{{1,2}})(?!\d)(?:, (\d{{4}}))?|\b(\d{{1,2}})/(\d{{1,2}})/(\d{{4}})\b", re.ASCII)
_COUNTED_DAY = re.compile(rf"How many ({_DAY})s|occurrences of ({_DAY})|how many times does ({_DAY})")
_OFFSET = re.compile(r"\b(\d{1,6})[ -]days?\b", re.ASCII)


def read_calendar(question: str) -> Worked | None:
    """Leap years, weekdays of dates, days before and after, how many of a weekday lie between two dates."""
    if match := _LEAP.search(question):
        year = int(match[1])
        return Worked("Yes" if calendar.isleap(year) else "No", f"{year} by the Gregorian rule.")
    if match := _RECURRING.search(question):
        ordinal, day = (match[1], match[2]) if match[1] else (match[7], match[8])
        return _find_recurring(ordinal, day, match[3] or match[5], int(match[4] or match[6]))
    dates = _read_dates(question)
    if not dates:
        return None
    if match := _FIRST_DAY.search(question):
        days = (dates[-1] - date(dates[-1].year, 1, 1)).days
        return Worked(_DAYS[(_DAYS.index(match[1] or match[2]) + days) % 7], f"{days} days after January 1.")
    if match := _COUNTED_DAY.search(question):
        return _count_weekday(dates, next(day for day in match.groups() if day))
    if not re.search(r"weekday|day of the week", question):
        return None
    return _find_weekday(dates[0], question)


def _read_dates(question: str) -> list[date]:
    """In the order of the text; a date without a year takes the next year that is named, else a year of 365 days."""
    found: list[tuple[int, int, int | None]] = []
    for m in _DATE.finditer(question):
        if m[1]:
            found.append((_MONTHS.index(m[1]) + 1, int(m[2]), int(m[3]) if m[3] else None))
        else:
            found.append((int(m[4]), int(m[5]), int(m[6])))
    year, dates = 2022, []
    for month, day, own_year in reversed(found[:8]):
        year = own_year or year
        if 1 <= year <= 9000 and 1 <= month <= 12 and 1 <= day <= calendar.monthrange(year, month)[1]:
            dates.append(date(year, month, day))
    return dates[::-1]


def _find_recurring(ordinal: str, day: str, month: str, year: int) -> Worked | None:
    if not 1 <= year <= 9000:
        return None
    number = _MONTHS.index(month) + 1
    weekday = _DAYS.index(day)
    days = [d for d in range(1, calendar.monthrange(year, number)[1] + 1) if date(year, number, d).weekday() == weekday]
    return Worked(str(days[_ORDINALS[ordinal]]), f"The {day}s of {month} {year} are {', '.join(map(str, days))}.")


def _count_weekday(dates: list[date], day: str) -> Worked | None:
    if len(dates) != 2 or not 0 <= (dates[1] - dates[0]).days <= _MAX_OFFSET_DAYS:
        return None
    first_after = (_DAYS.index(day) - dates[0].weekday()) % 7
    length = (dates[1] - dates[0]).days
    count = 0 if first_after > length else (length - first_after) // 7 + 1
    return Worked(str(count), f"{length + 1} days, both ends counted.")


def _find_weekday(start: date, question: str) -> Worked | None:
    match = _OFFSET.search(question)
    days = int(match[1]) if match else 0
    if days > _MAX_OFFSET_DAYS:
        return None
    if re.search(r"\bago\b|\bbefore\b|\bbackward\b", question):
        days = -days
    answer = _DAYS[(start.weekday() + days) % 7]
    how = f"{start.isoformat()} is a {_DAYS[start.weekday()]}"
    return Worked(answer, f"{how}; {days:+d} days is a {answer}." if days else f"{how}.")


_SPAN = re.compile(
    r"(?:started at|began at|departed at|between|from)\s+(.{3,60}?)\s+"
    r"(?:and ended at|and completed at|and arrived at|and|to)\s+(.{3,60}?)[?.]\s"
)
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2})(?:\.\d{1,3})?)?", re.ASCII)
_DATE_FORMATS = ("%Y-%m-%d", "%B %d, %Y", "%m/%d/%Y", "%A, %B %d, %Y", "%a %b %d %Y", "%d %B %Y", "%Y-%m-%d (%A)")


def measure_time(question: str) -> Worked | None:
    """From one clock time, or one date, to another."""
    match = _SPAN.search(question + " ")
    if match is None:
        return None
    start, end = _CLOCK.fullmatch(match[1]), _CLOCK.fullmatch(match[2])
    if start and end:
        seconds = _clock_seconds(end) - _clock_seconds(start)
        if seconds < 0:
            seconds += 24 * 3600
        minutes, rest = divmod(seconds, 60)
        answer = f"{minutes // 60:02d}:{minutes % 60:02d}" + (f":{rest:02d}" if "HH:MM:SS" in question else "")
        return Worked(answer, f"From {match[1]} to {match[2]}.")
    first, second = _parse_date(match[1]), _parse_date(match[2])
    if first is None or second is None:
        return None
    return Worked(f"{(second - first).days} days", f"From {first.isoformat()} to {second.isoformat()}.")


def _clock_seconds(match: re.Match[str]) -> int:
    return int(match[1]) * 3600 + int(match[2]) * 60 + int(match[3] or 0)


def _parse_date(text: str) -> date | None:
    for form in _DATE_FORMATS:
        try:
            return datetime.strptime(text, form).date()
        except ValueError:
            continue
    return None


DATES: Mapping[str, Skill] = {"read_calendar": read_calendar, "measure_time": measure_time}
