"""What statistics of scores must be, written from their definitions."""

import math


def wilson(successes, number):
    """The interval from its definition: both roots of (p - mean)^2 = z^2 p (1 - p) / n."""
    z, mean = 1.959963984540054, successes / number
    a, b, c = 1 + z * z / number, -(2 * mean + z * z / number), mean * mean
    root = math.sqrt(b * b - 4 * a * c)
    return (-b - root) / (2 * a), (-b + root) / (2 * a)
