package stream

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func values(ws []*Waiter[int]) (list []int) {
	for _, w := range ws {
		list = append(list, w.Value)
	}
	return list
}

// pop takes the oldest out of a line.
func pop(l *Line[int]) *Waiter[int] {
	first := l.PopRunnable(nil, 1, func(*Waiter[int]) bool { return true })
	if len(first) == 0 {
		return nil
	}
	return first[0]
}

func TestLineServesTheOldestThatCanRun(t *testing.T) {
	l := NewLine[int](new(Tickets))
	for v := range 6 {
		l.Join(v)
	}
	odd := func(w *Waiter[int]) bool { return w.Value%2 == 1 }
	got := l.PopRunnable(nil, 2, odd)
	require.Equal(t, []int{1, 3}, values(got))
	var passed []uint32
	for w := range l.All() {
		passed = append(passed, w.Passed())
	}
	require.Equal(t, []uint32{2, 1, 0, 0}, passed, "0 was passed twice, 2 once, 4 and 5 by nobody")
	l.PutBack(got[1])
	l.PutBack(got[0])
	require.Equal(t, 0, pop(l).Value)
	require.Equal(t, 1, pop(l).Value)
	require.Equal(t, 2, l.First().Value)
	require.Equal(t, 4, l.Len())
}

func TestLineJoinsByTicket(t *testing.T) {
	var tickets Tickets
	l := NewLine[int](&tickets)
	first, second := tickets.Next(), tickets.Next()
	l.Join(3)
	l.JoinAt(2, second)
	l.Join(4)
	l.JoinAt(1, first)
	for want := 1; want <= 4; want++ {
		require.Equal(t, want, pop(l).Value)
	}
}

func TestLineCancelsOnce(t *testing.T) {
	l := NewLine[int](new(Tickets))
	w := l.Join(1)
	require.True(t, w.Cancel())
	require.False(t, w.Cancel())
	require.Nil(t, pop(l))
	w = l.Join(2)
	require.Equal(t, w, pop(l))
	require.False(t, w.Cancel(), "its turn has come")
}

// Waiters move between lines and keep their places by ticket.
func TestLinesAgainstModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 3))
	var tickets Tickets
	lines := []*Line[int]{NewLine[int](&tickets), NewLine[int](&tickets)}
	model := make([][]*Waiter[int], len(lines))
	var out []*Waiter[int]
	byTicket := func(a, b *Waiter[int]) int { return int(a.ticket) - int(b.ticket) }
	for i := range 5000 {
		k := random.IntN(len(lines))
		switch op := random.IntN(5); {
		case op < 2:
			model[k] = append(model[k], lines[k].Join(i))
		case op == 2 && len(model[k]) > 0:
			w := pop(lines[k])
			require.Equal(t, model[k][0], w)
			model[k] = model[k][1:]
			out = append(out, w)
		case op == 3 && len(model[k]) > 0:
			j := random.IntN(len(model[k]))
			require.True(t, model[k][j].Cancel())
			model[k] = slices.Delete(model[k], j, j+1)
		case op == 4 && len(out) > 0:
			lines[k].PutBack(out[0])
			model[k] = append(model[k], out[0])
			slices.SortFunc(model[k], byTicket)
			out = out[1:]
		}
		require.Equal(t, len(model[k]), lines[k].Len(), fmt.Sprint(i))
		require.True(t, slices.Equal(model[k], slices.Collect(lines[k].All())))
	}
}
