# Prints a line of the table.  Its input are the pairs, "BASE VALUE"; `text`,
# `unit`, `aim` (at most) and `least` (at least), which may be empty, come from the command line.

function sort(list,   i, k, v)
{
    for (i = 2; i <= NR; i++) {
        v = list[i]
        for (k = i - 1; k > 0 && list[k] > v; k--) {
            list[k + 1] = list[k]
        }
        list[k + 1] = v
    }
}

# Of a sorted list, between two elements where it must be.

function quantile(list, q,   at, low)
{
    at = 1 + q * (NR - 1)
    low = int(at)
    return list[low] + (at - low) * (list[low + (low < NR)] - list[low])
}

{
    ratio[NR] = $2 / $1
    one[NR] = $1 + 0
    two[NR] = $2 + 0
}

END {
    sort(ratio)
    sort(one)
    sort(two)

    median = quantile(ratio, 0.5)

    printf "  %-40s %7.2f  %5.2f - %-5.2f  %9.2f %9.2f %s", text,
           median, quantile(ratio, 0.25), quantile(ratio, 0.75),
           quantile(one, 0.5), quantile(two, 0.5), unit

    if (least != "") {
        printf "  aim >= %.2f: %s", least, (median >= least ? "met" : "MISSED")
    } else if (aim != "") {
        printf "  aim <= %.2f: %s", aim, (median <= aim ? "met" : "MISSED")
    }

    print ""
}
