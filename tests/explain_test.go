package tests

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// explain says how far a history that is not linearizable makes sense: of each
// group that does not, the end of the longest order that was found, the state
// behind it, and the first operations that have no place there.
func explain(t testing.TB, ops []porcupine.Operation, info porcupine.LinearizationInfo) {
	const few = 12
	parts := fifo.Partition(ops)
	for i, orders := range info.PartialLinearizationsOperations() {
		var longest []porcupine.Operation
		for _, order := range orders {
			if len(order) > len(longest) {
				longest = order
			}
		}
		if len(longest) == len(parts[i]) {
			continue
		}
		states := fifo.Init()
		placed := make(map[string]int)
		for _, o := range longest {
			placed[tell(o)]++
			var next []any
			for _, s := range states {
				next = append(next, fifo.Step(s, o.Input, o.Output)...)
			}
			states = next
		}
		var text strings.Builder
		fmt.Fprintf(&text, "group %d makes sense up to %d of %d operations:\n", i, len(longest), len(parts[i]))
		for _, o := range longest[max(0, len(longest)-few):] {
			fmt.Fprintln(&text, "  ", tell(o))
		}
		for _, s := range states[:min(len(states), few)] {
			fmt.Fprintf(&text, "then %+v\n", s)
		}
		fmt.Fprintln(&text, "but not:")
		rest := slices.DeleteFunc(parts[i], func(o porcupine.Operation) bool { placed[tell(o)]--; return placed[tell(o)] >= 0 })
		slices.SortFunc(rest, func(a, b porcupine.Operation) int { return cmp.Compare(a.Return, b.Return) })
		for _, o := range rest[:min(len(rest), few)] {
			fmt.Fprintln(&text, "  ", tell(o))
		}
		t.Log(text.String())
	}
}

func tell(o porcupine.Operation) string {
	return fmt.Sprintf("%v to %v, client %d: %+v: %+v", time.Duration(o.Call), time.Duration(o.Return), o.ClientId, o.Input, o.Output)
}
