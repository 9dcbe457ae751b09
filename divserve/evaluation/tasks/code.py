"""Small functions from their docstrings; the tests run in `divserve.evaluation.sandbox`."""

from __future__ import annotations

from divserve.evaluation.items import Item, Task

__all__ = ["task"]

PROMPT = "Write the Python function `{head}`. {what} Give only the code."
FUNCTIONS = (
    ("add(a, b)", "It returns the sum of two numbers.", "add(2, 3) == 5; add(-1, 1) == 0"),
    ("square(x)", "It returns x times x.", "square(5) == 25; square(-3) == 9"),
    ("is_even(n)", "It returns whether n is even.", "is_even(4); not is_even(7); is_even(0)"),
    (
        "maximum(numbers)",
        "It returns the largest number of a list.",
        "maximum([3, 9, 2]) == 9; maximum([-5, -2]) == -2",
    ),
    (
        "reverse(text)",
        "It returns the text backwards.",
        "reverse('abc') == 'cba'; reverse('') == ''",
    ),
    (
        "count_vowels(text)",
        "It returns how many of the letters a, e, i, o, u are in the text.",
        "count_vowels('education') == 5; count_vowels('sky') == 0",
    ),
    ("factorial(n)", "It returns the factorial of n.", "factorial(5) == 120; factorial(0) == 1"),
    (
        "fibonacci(n)",
        "It returns the n-th Fibonacci number, with fibonacci(0) = 0 and fibonacci(1) = 1.",
        "fibonacci(10) == 55; fibonacci(1) == 1; fibonacci(0) == 0",
    ),
    (
        "is_palindrome(text)",
        "It returns whether the text reads the same backwards.",
        "is_palindrome('level'); not is_palindrome('levels')",
    ),
    (
        "total(numbers)",
        "It returns the sum of a list of numbers, 0 for an empty list.",
        "total([1, 2, 3]) == 6; total([]) == 0",
    ),
    (
        "mean(numbers)",
        "It returns the mean of a list of numbers.",
        "mean([1, 2, 3]) == 2; mean([5]) == 5",
    ),
    (
        "only_even(numbers)",
        "It returns the list of the even numbers, in their order.",
        "only_even([1, 2, 3, 4]) == [2, 4]; only_even([1]) == []",
    ),
    (
        "double(numbers)",
        "It returns a list in which each number is doubled.",
        "double([1, 2]) == [2, 4]; double([]) == []",
    ),
    (
        "unique(items)",
        "It returns the items without repeats, in the order of their first occurrence.",
        "unique([3, 1, 3, 2, 1]) == [3, 1, 2]; unique([]) == []",
    ),
    (
        "gcd(a, b)",
        "It returns the greatest common divisor of a and b.",
        "gcd(12, 18) == 6; gcd(7, 5) == 1",
    ),
    (
        "is_prime(n)",
        "It returns whether n is a prime number.",
        "is_prime(7); not is_prime(9); not is_prime(1); is_prime(2)",
    ),
    (
        "words(text)",
        "It returns the number of words in a text separated by spaces.",
        "words('a b c') == 3; words('') == 0",
    ),
    (
        "capitalize_words(text)",
        "It returns the text with the first letter of each word in upper case.",
        "capitalize_words('good morning') == 'Good Morning'",
    ),
    (
        "celsius(f)",
        "It converts degrees Fahrenheit to degrees Celsius.",
        "abs(celsius(212) - 100) < 1e-9; abs(celsius(32)) < 1e-9",
    ),
    (
        "clamp(x, low, high)",
        "It returns x, but at least low and at most high.",
        "clamp(5, 0, 3) == 3; clamp(-1, 0, 3) == 0; clamp(2, 0, 3) == 2",
    ),
    (
        "flatten(lists)",
        "It returns one list with the items of all lists.",
        "flatten([[1], [2, 3]]) == [1, 2, 3]; flatten([]) == []",
    ),
    (
        "digits_sum(n)",
        "It returns the sum of the decimal digits of a positive integer.",
        "digits_sum(1234) == 10; digits_sum(7) == 7",
    ),
    (
        "power(base, exponent)",
        "It returns base to the power of a non-negative integer exponent.",
        "power(2, 10) == 1024; power(5, 0) == 1",
    ),
    (
        "longest(words)",
        "It returns the longest word of a list; of several the first.",
        "longest(['a', 'abc', 'ab']) == 'abc'; longest(['to', 'be']) == 'to'",
    ),
    (
        "count(items, item)",
        "It returns how often the item occurs in a list.",
        "count([1, 2, 1], 1) == 2; count([], 1) == 0",
    ),
    (
        "second_largest(numbers)",
        "It returns the second largest of a list of different numbers.",
        "second_largest([4, 9, 7]) == 7; second_largest([1, 2]) == 1",
    ),
    (
        "swap_case(text)",
        "It turns upper case into lower case and lower case into upper case.",
        "swap_case('aBc') == 'AbC'",
    ),
    (
        "remove_spaces(text)",
        "It returns the text without spaces.",
        "remove_spaces(' a b ') == 'ab'; remove_spaces('x') == 'x'",
    ),
    (
        "leap_year(year)",
        "It returns whether a year is a leap year of the Gregorian calendar.",
        "leap_year(2000); not leap_year(1900); leap_year(2024); not leap_year(2023)",
    ),
    (
        "index_of(items, item)",
        "It returns the first index of the item in a list, or -1.",
        "index_of([4, 5, 6], 6) == 2; index_of([4], 9) == -1",
    ),
    (
        "difference(a, b)",
        "It returns the list of the items of a that are not in b.",
        "difference([1, 2, 3], [2]) == [1, 3]; difference([], [1]) == []",
    ),
    (
        "is_sorted(numbers)",
        "It returns whether a list of numbers is in ascending order.",
        "is_sorted([1, 2, 2, 5]); not is_sorted([3, 1]); is_sorted([])",
    ),
)


def task() -> Task:
    """One item for each function."""
    return Task(
        name="code",
        items=[
            Item(
                id=head.partition("(")[0],
                messages=[{"role": "user", "content": PROMPT.format(head=head, what=what)}],
                document=what,
                judge="python",
                tests="\n".join(f"assert {one}" for one in tests.split("; ")),
                max_tokens=160,
            )
            for head, what, tests in FUNCTIONS
        ],
    )
