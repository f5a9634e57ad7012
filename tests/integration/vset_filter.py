"""FILTER expressions in Python: the oracle of the vector set tests.

  or  := and {("or"|"||") and}         cmp := add {(">"|">="|"<"|"<="|"=="|"!="|"in") add}
  and := cmp {("and"|"&&") cmp}        add := mul {("+"|"-") mul}
  mul := pow {("*"|"/"|"%") pow}       pow := un ["**" pow]
  un  := ("!"|"not") un | atom
  atom := number | string | null | [tuple] | .field | (or)

compile(text) gives a program in postfix order or raises BadExpression; run(program, fields) says
whether the fields of an element match. A field that is missing, or whose value has no place in
this world (an object), makes the whole expression false, whatever stands around it.

Redis compiles with two stacks and does not look at the order of operators and operands, so it
also takes "5 not" and refuses "not not 5"; in its numbers an exponent has no sign; its null ends
at a space, or at what is no operator; a dot at the end is a field of no name. With redis=True
compile does the same.
"""

import re

import numpy as np


class BadExpression(ValueError):
    pass


class Null:
    def __repr__(self):
        return "null"


NULL = Null()
"""JSON's null."""

PRECEDENCE = {"or": 0, "||": 0, "and": 1, "&&": 1, "in": 2, "+": 3, "-": 3, "*": 4, "/": 4, "%": 4}
PRECEDENCE |= {op: 2 for op in (">", ">=", "<", "<=", "==", "!=")}
PRECEDENCE |= {"**": 5, "!": 6, "not": 6}
SAME = {"||": "or", "&&": "and", "!": "not"}
OPERATORS = sorted([*PRECEDENCE, "(", ")"], key=len, reverse=True)

STRTOD = re.compile(
    r"[ \t\n\v\f\r]*[+-]?(0[xX]([0-9a-fA-F]+(\.[0-9a-fA-F]*)?|\.[0-9a-fA-F]+)([pP][+-]?\d+)?"
    r"|(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|inf(inity)?|nan(\(\w*\))?)",
    re.IGNORECASE | re.ASCII,
)


def strtod(text):
    """The number that the whole of text is, as C's strtod reads it; None when it is none."""
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    if not STRTOD.fullmatch(text):
        return None
    text = text.strip().lower()
    if "x" in text:
        return float.fromhex(text)
    return float(re.sub(r"nan.*", "nan", text))


# --- words --------------------------------------------------------------------------------------


class Op(str):
    pass


class Field(str):
    pass


NUMBER = re.compile(r"-?[0-9]*(\.[0-9]*)?([eE][+-]?[0-9]*)?")
REDIS_NUMBER = re.compile(r"-?[0-9.eE]*")


def read_number(text, at, redis):
    m = (REDIS_NUMBER if redis else NUMBER).match(text, at)
    value = strtod(m.group())
    if value is None:
        raise BadExpression(text[m.end() :])
    return value, m.end()


def read_string(text, at):
    m = re.compile(r"""'((?:\\.|[^'\\])*)'|"((?:\\.|[^"\\])*)\"""", re.DOTALL).match(text, at)
    if not m:
        raise BadExpression(text[at:])
    return (m.group(1) if m.group(1) is not None else m.group(2)), m.end()


def skip_spaces(text, at):
    while at < len(text) and text[at] in " \t\n\v\f\r":
        at += 1
    return at


def read_tuple(text, at, redis):
    items, at = [], at + 1
    while True:
        at = skip_spaces(text, at)
        if text[at : at + 1] == "]":
            return tuple(items), at + 1
        c = text[at : at + 1]
        if c and (c in "0123456789" or c == "-"):
            item, at = read_number(text, at, redis)
        elif c and c in "'\"":
            item, at = read_string(text, at)
        else:
            raise BadExpression(text[at:])
        items.append(item)
        at = skip_spaces(text, at)
        if text[at : at + 1] == ",":
            at += 1
        elif text[at : at + 1] != "]":
            raise BadExpression(text[at:])


def words_of(text, redis=False):
    words, at = [], 0
    while True:
        at = skip_spaces(text, at)
        if at == len(text):
            return words
        c = text[at]
        minus = not words or (isinstance(words[-1], Op) and words[-1] != ")")
        follows = text[at + 1 : at + 2]
        if c in "0123456789" or (c == "-" and minus and follows and follows in "0123456789"):
            word, at = read_number(text, at, redis)
        elif c in "'\"":
            word, at = read_string(text, at)
        elif m := re.compile(r"\.([A-Za-z0-9_-]+)").match(text, at):
            word, at = Field(m.group(1)), m.end()
        elif c == "." and redis and not follows:
            word, at = Field(""), at + 1
        elif c == "[":
            word, at = read_tuple(text, at, redis)
        else:
            run = re.compile(r"[A-Za-z+\-*%/!()<>=|&]*").match(text, at).group()
            if run == "null" or (run.startswith("null") and not redis):
                word, at = NULL, at + 4
            else:
                op = next((o for o in OPERATORS if run.startswith(o)), None)
                if op is None:
                    raise BadExpression(text[at:])
                word, at = Op(op), at + len(op)
        words.append(word)


# --- from words to postfix ----------------------------------------------------------------------


class Grammar:
    """By the grammar, top down."""

    LEVELS = [
        ("or", "||"),
        ("and", "&&"),
        (">", ">=", "<", "<=", "==", "!=", "in"),
        ("+", "-"),
        ("*", "/", "%"),
    ]

    def __init__(self, words):
        self.words, self.at, self.out = words, 0, []

    def peek(self, *ops):
        w = self.words[self.at] if self.at < len(self.words) else None
        return isinstance(w, Op) and w in ops

    def program(self):
        self.binary(0)
        if self.at != len(self.words):
            raise BadExpression("what comes after the end")
        return self.out

    def binary(self, level):
        if level == len(self.LEVELS):
            return self.power()
        self.binary(level + 1)
        while self.peek(*self.LEVELS[level]):
            op = self.words[self.at]
            self.at += 1
            self.binary(level + 1)
            self.out.append(op)

    def power(self):
        self.unary()
        if self.peek("**"):
            self.at += 1
            self.power()
            self.out.append(Op("**"))

    def unary(self):
        if self.peek("!", "not"):
            self.at += 1
            self.unary()
            self.out.append(Op("not"))
            return
        if self.peek("("):
            self.at += 1
            self.binary(0)
            if not self.peek(")"):
                raise BadExpression("no ')'")
            self.at += 1
            return
        if self.at == len(self.words) or isinstance(self.words[self.at], Op):
            raise BadExpression("no operand")
        self.out.append(self.words[self.at])
        self.at += 1


def two_stacks(words):
    """As Redis does: operands and operators are counted, not their order."""
    out, waiting, n = [], [], 0

    def emit(op):
        nonlocal n
        arity = 1 if op in ("!", "not") else 2
        if n < arity:
            raise BadExpression("operands missing")
        out.append(op)
        n += 1 - arity

    for w in words:
        if not isinstance(w, Op):
            out.append(w)
            n += 1
        elif w == "(":
            waiting.append(w)
        elif w == ")":
            while True:
                if not waiting:
                    raise BadExpression("no '('")
                op = waiting.pop()
                if op == "(":
                    break
                emit(op)
        else:
            mine = PRECEDENCE[w]
            while waiting and waiting[-1] != "(":
                top = PRECEDENCE[waiting[-1]]
                if top < mine or (w == "**" and top <= mine):
                    break
                emit(waiting.pop())
            waiting.append(w)
    while waiting:
        op = waiting.pop()
        if op == "(":
            raise BadExpression("no ')'")
        emit(op)
    if n != 1:
        raise BadExpression("not one value")
    return out


def compile(text, redis=False):
    """text: str of one character a byte (latin-1)."""
    words = words_of(text, redis)
    return two_stacks(words) if redis else Grammar(words).program()


# --- running ------------------------------------------------------------------------------------


def number_of(v):
    if isinstance(v, str):
        n = strtod(v) if len(v) < 256 and v != "" else None
        return 0.0 if n is None else n
    return v if isinstance(v, float) else 0.0


def truth_of(v):
    if isinstance(v, float):
        return v != 0
    return v is not NULL and v != ""


def equal(a, b):
    if isinstance(a, str) and isinstance(b, str):
        return a == b
    if a is NULL or b is NULL:
        return a is b
    return number_of(a) == number_of(b)


def contains(a, b):
    if isinstance(b, tuple):
        return any(equal(a, item) for item in b)
    return isinstance(a, str) and isinstance(b, str) and a in b


def apply(op, a, b):
    if op in ("and", "or"):
        return (truth_of(a) and truth_of(b)) if op == "and" else (truth_of(a) or truth_of(b))
    if op in ("==", "!="):
        return equal(a, b) == (op == "==")
    if op == "in":
        return contains(a, b)
    x, y = np.float64(number_of(a)), np.float64(number_of(b))
    with np.errstate(all="ignore"):
        return {
            ">": lambda: x > y,
            ">=": lambda: x >= y,
            "<": lambda: x < y,
            "<=": lambda: x <= y,
            "+": lambda: x + y,
            "-": lambda: x - y,
            "*": lambda: x * y,
            "/": lambda: x / y,
            "%": lambda: np.fmod(x, y),
            "**": lambda: np.power(x, y),
        }[op]()


def run(program, fields):
    """fields: name -> float, str, NULL or tuple; None for a value that matches nothing."""
    stack = []
    for w in program:
        if isinstance(w, Field):
            v = fields.get(str(w))
            if v is None:
                return False
            stack.append(v)
        elif isinstance(w, Op):
            op = SAME.get(w, str(w))
            b = stack.pop()
            v = not truth_of(b) if op == "not" else apply(op, stack.pop(), b)
            stack.append(float(v))
        else:
            stack.append(w)
    return bool(truth_of(stack[-1]))
