package main

import (
	"fmt"
	"slices"
	"strings"
)

// table is what was measured, by rows; the columns are what it was measured of.
type table struct {
	columns []string
	rows    []*tableRow
}

type tableRow struct {
	name, unit string
	figures    map[string][]float64 // by column, one a round
}

func newTable(columns ...string) *table { return &table{columns: columns} }

// row returns the row of a name, which it adds where it is missing.
func (t *table) row(name, unit string) *tableRow {
	i := slices.IndexFunc(t.rows, func(r *tableRow) bool { return r.name == name })
	if i < 0 {
		i = len(t.rows)
		t.rows = append(t.rows, &tableRow{name, unit, make(map[string][]float64)})
	}
	return t.rows[i]
}

// add adds a figure of one round.
func (t *table) add(name, unit, column string, figure float64) {
	r := t.row(name, unit)
	r.figures[column] = append(r.figures[column], figure)
}

// print prints the medians, and for each column the median of the rounds'
// ratios of the first one to it.
func (t *table) print(title string) {
	fmt.Printf("%s; medians, and ratios of %q to the others\n%-42s", title, t.columns[0], "")
	for _, column := range t.columns {
		fmt.Printf(" %14s", column)
	}
	fmt.Println("   ratios")
	for _, r := range t.rows {
		fmt.Printf("%-42s", r.name+" "+r.unit)
		var ratios []string
		for _, column := range t.columns {
			figures := r.figures[column]
			if len(figures) == 0 {
				fmt.Printf(" %14s", "-")
				ratios = append(ratios, "-")
				continue
			}
			fmt.Printf(" %14.0f", median(figures))
			ratios = append(ratios, fmt.Sprintf("%.2f", r.ratio(t.columns[0], column)))
		}
		fmt.Println("   " + strings.Join(ratios[1:], " "))
	}
}

// printBeside prints a line for each column, and in those of the others the
// ratios of the first so many columns, which are ours, to it.
func (r *tableRow) printBeside(columns []string, ours int, aims map[string]float64) {
	fmt.Printf("\n%s, %s\n", r.name, r.unit)
	for i, column := range columns {
		figures := r.figures[column]
		if len(figures) == 0 {
			continue
		}
		line := fmt.Sprintf("  %-16s %10.0f  (%.0f to %.0f)", column, median(figures), slices.Min(figures), slices.Max(figures))
		if i >= ours {
			line = fmt.Sprintf("%-55s", line)
			for _, our := range columns[:ours] {
				line += fmt.Sprintf(" %5.2f", r.ratio(our, column))
			}
			if aim, ok := aims[column]; ok {
				line += fmt.Sprintf("   aim %.1f", aim)
			}
		}
		fmt.Println(line)
	}
}

// ratio is the median of the rounds' ratios of one column to another.
func (r *tableRow) ratio(ours, theirs string) float64 {
	each := make([]float64, len(r.figures[theirs]))
	for i := range each {
		each[i] = r.figures[ours][i] / r.figures[theirs][i]
	}
	return median(each)
}
