"""The pictures of bench/vsets.py: recall against speed, filters, churn."""

LOOK = {  # colour, width
    "kith": ("#c2185b", 2.6),
    "hnswlib": ("#455a64", 1.4),
    "faiss": ("#8d9aa1", 1.4),
    "usearch": ("#b0a18a", 1.4),
    "Redis": ("#1e88a8", 1.4),
    "kith TRUTH": ("#e8a0bd", 1.4),
}
LABEL = {
    "kith": "kith, Q8, over TCP",
    "hnswlib": "hnswlib, f32, in process",
    "faiss": "faiss HNSWFlat, f32, in process",
    "usearch": "usearch, f32, in process",
    "Redis": "Redis vector sets, Q8, over TCP",
    "kith TRUTH": "kith, exact scan of the matches",
}
MARKS = {"kith": "o", "hnswlib": "s", "faiss": "^", "usearch": "v", "Redis": "D", "kith TRUTH": "."}


def draw(axis, who, x, y):
    colour, width = LOOK[who]
    axis.plot(x, y, color=colour, linewidth=width, marker=MARKS[who], markersize=4,
              label=LABEL[who], zorder=3 if who == "kith" else 2)


def plain_numbers(axis):
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(True, which="major", color="#dddddd", linewidth=0.6)


def plot_recall(pyplot, rows, path):
    rows = [r for r in rows if r["kind"] == "sweep"]
    panels = list(dict.fromkeys((r["data"], r["n"], r["dim"]) for r in rows))
    panels.sort(key=lambda p: (p[2] != 384, p))  # the ones with all peers first
    wide, high = min(2, len(panels)), -(-len(panels) // 2)
    figure, axes = pyplot.subplots(high, wide, figsize=(5.2 * wide, 4.4 * high), squeeze=False)
    for axis in axes.flat[len(panels):]:
        axis.set_axis_off()
    for axis, (name, n, dim) in zip(axes.flat, panels):
        here = [r for r in rows if (r["data"], r["n"], r["dim"]) == (name, n, dim)]
        for who in LOOK:
            line = [r for r in here if r["who"] == who and r["recall"] >= 0.6]
            if line:
                draw(axis, who, [r["recall"] for r in line], [r["rate"] for r in line])
        axis.axvline(0.95, color="#888888", linewidth=0.8, linestyle="--")
        axis.set_yscale("log")
        plain_numbers(axis)
        axis.set_title(f"{name}, {n:,} x {dim}")
        axis.set_xlabel("recall@10")
        axis.set_ylabel("queries a second, one at a time")
    axes[0][0].legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def plot_filter(pyplot, rows, path):
    fields = {"r": "matches anywhere", "c": "matches in one corner, queries elsewhere"}
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 6.4), sharex=True)
    for column, (field, title) in enumerate(fields.items()):
        for who in LOOK:
            line = [r for r in rows if r["field"] == field and r["who"] == who]
            if line:
                x = [100 * r["selectivity"] for r in line]
                draw(axes[0][column], who, x, [r["recall"] for r in line])
                draw(axes[1][column], who, x, [r["p50_us"] for r in line])
        axes[0][column].set_title(title)
        axes[0][column].set_ylim(0, 1.03)
        axes[0][column].grid(True, color="#dddddd", linewidth=0.6)
        axes[1][column].set_yscale("log")
        plain_numbers(axes[1][column])
        axes[1][column].set_xscale("log")
        axes[1][column].set_xticks([50, 10, 1, 0.1, 0.01], ["50", "10", "1", "0.1", "0.01"])
        axes[1][column].set_xlabel("elements that match, %")
    axes[0][0].set_ylabel("recall@10 (a missing answer is a miss)")
    axes[1][0].set_ylabel("median, us")
    axes[1][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def plot_churn(pyplot, rows, path):
    rounds, fresh = rows[:-1], rows[-1]
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4))
    x, colour = range(len(rounds)), LOOK["kith"][0]
    axes[0].plot(x, [r["recall"] for r in rounds], color=colour, linewidth=2.6, marker="o",
                 label="churned")
    axes[0].axhline(fresh["recall"], color="#455a64", linestyle="--", label="built anew")
    axes[0].set_ylim(min(0.9, min(r["recall"] for r in rows) - 0.01), 1)
    axes[0].set_ylabel(f"recall@10 at EF {fresh['ef']}")
    for field, style in (("memory", "-"), ("file", ":")):
        axes[1].plot(x, [r[field] / r["n"] for r in rounds], color=colour, linewidth=2.2,
                     linestyle=style, label=f"{field}, churned")
        axes[1].axhline(fresh[field] / fresh["n"], color="#455a64", linestyle=style,
                        label=f"{field}, built anew")
    axes[1].set_ylim(0, None)
    axes[1].set_ylabel("bytes an element")
    for axis in axes:
        axis.set_xlabel("rounds of removing and adding 10 %")
        axis.grid(True, color="#dddddd", linewidth=0.6)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def plot(bench):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for name, draw_one in (("recall", plot_recall), ("filter", plot_filter),
                           ("churn", plot_churn)):
        if bench.tables.get(name):
            draw_one(pyplot, bench.tables[name], bench.args.out / f"vsets-{name}.png")
