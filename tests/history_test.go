package tests

import (
	"fmt"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// groupStreams is how many streams there are in a group: whatever is about
// several streams at once is about those of one group, so that each group's
// history stands for itself.
const groupStreams = 3

// An ask is what a client asks of a stream, or of several of one group.
type ask struct {
	stream int
	// op is "put", "take", "lease", "ack", "return", "extend", "update", "peek" or
	// "after"; "tx" with steps, which are such or "if". "lapse" is that a lease has
	// run out, "gone" that its record has been removed. "shadow" is a lease of which
	// its holder may have heard nothing, and "fade" its end.
	op    string
	n     int    // records to put, or at most to take
	or    int    // of a take: the stream that serves it where the first has nothing; the same one is none
	held  []held // what is acknowledged, returned or extended, or lapsed
	after uint64 // what to peek after
	steps []ask

	newest, head *uint64       // what an "if" is about, or
	empty        bool          // that nothing is left, or that n can be taken
	since        time.Duration // before which the lease can't have lapsed
}

// held is a record that is leased.
type held struct{ seq, fence uint64 }

// A reply is what a client was told.
type reply struct {
	stream int      // that served a take
	seqs   []uint64 // of what was put, taken or seen
	fences []uint64 // of what was leased
	empty  bool     // that there is nothing, or that not all can be done
	maybe  bool     // it was told nothing, and it may have happened
	steps  []reply
}

// A queue is a stream's state: what can be taken, what is leased, what comes
// next. Both are in order, and no slice is ever changed.
type queue struct {
	next   uint64
	ready  []uint64
	leased []held
}

// A group is the state of its streams.
type group [groupStreams]queue

var fifo = porcupine.NondeterministicModel{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		var parts [][]porcupine.Operation
		for _, o := range history {
			group := o.Input.(ask).stream / groupStreams
			for len(parts) <= group {
				parts = append(parts, nil)
			}
			parts[group] = append(parts[group], o)
		}
		return parts
	},
	Init: func() []any {
		var g group
		for i := range g {
			g[i].next = 1
		}
		return []any{g}
	},
	Step: func(state, input, output any) []any {
		g, in, out := state.(group), input.(ask), output.(reply)
		if in.op == "shadow" {
			return g.shadow(in)
		}
		if !out.maybe {
			if after, ok := g.step(in, out); ok {
				return []any{after}
			}
			return nil
		}
		may := []any{g}
		for _, out := range g.replies(in) {
			if after, ok := g.step(in, out); ok {
				may = append(may, after)
			}
		}
		return may
	},
	Equal: func(a, b any) bool {
		g, h := a.(group), b.(group)
		for i := range g {
			p, q := &g[i], &h[i]
			if p.next != q.next || !slices.Equal(p.ready, q.ready) || !slices.Equal(p.leased, q.leased) {
				return false
			}
		}
		return true
	},
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v: %+v", in, out) },
}

// at is the state of a stream.
func (g *group) at(stream int) *queue { return &g[stream%groupStreams] }

// step returns the state behind an operation, where out is an answer to it.
func (g group) step(in ask, out reply) (group, bool) {
	switch in.op {
	case "tx":
		return g.transact(in, out)
	case "fade":
		return g.fade(in), true
	}
	stream := in.stream
	if takes := in.op == "take" || in.op == "lease"; takes && in.or != in.stream {
		first := len(g.at(in.stream).ready) == 0
		if out.empty {
			return g, first && len(g.at(in.or).ready) == 0
		}
		if stream = out.stream; stream != in.stream && !first {
			return g, false
		}
	}
	after, ok := g.at(stream).step(in, out)
	*g.at(stream) = after
	return g, ok
}

// shadow returns the states in which somebody holds what he may not know of.
func (g group) shadow(in ask) []any {
	may := []any{g}
	for _, stream := range slices.Compact([]int{in.stream, in.or}) {
		for n := 1; n <= min(in.n, len(g.at(stream).ready)); n++ {
			out := reply{stream: stream, seqs: g.at(stream).ready[:n]}
			for range n {
				out.fences = append(out.fences, in.held[0].fence)
			}
			after := g
			*after.at(stream), _ = g.at(stream).step(ask{op: "lease", n: n}, out)
			may = append(may, after)
		}
	}
	return may
}

func (g group) fade(in ask) group {
	for i := range g {
		var all []held
		for _, h := range g[i].leased {
			if h.fence == in.held[0].fence {
				all = append(all, h)
			}
		}
		if len(all) > 0 {
			g[i].end(all, true)
		}
	}
	return g
}

// transact does all steps of a transaction or none: conditions and takes see the
// state before it, and then come its settlements, updates and puts.
func (g group) transact(in ask, out reply) (group, bool) {
	can := g.can(in.steps)
	if out.empty {
		return g, !can
	}
	if !can || len(out.steps) != len(in.steps) {
		return g, false
	}
	for _, ops := range [][]string{{"take", "lease"}, {"ack", "return", "extend"}, {"update"}, {"put"}} {
		for i, step := range in.steps {
			if !slices.Contains(ops, step.op) {
				continue
			}
			after, ok := g.at(step.stream).step(step, out.steps[i])
			if !ok || len(out.steps[i].seqs) < step.n {
				return g, false
			}
			*g.at(step.stream) = after
		}
	}
	return g, true
}

// can reports whether the conditions of a transaction are met and there is all
// that it takes.
func (g *group) can(steps []ask) bool {
	var taken [groupStreams]int
	for _, s := range steps {
		q := g.at(s.stream)
		switch s.op {
		case "if":
			if !q.meets(s) {
				return false
			}
		case "take", "lease":
			n := &taken[s.stream%groupStreams]
			if *n += s.n; *n > len(q.ready) {
				return false
			}
		}
	}
	return true
}

func (q *queue) meets(s ask) bool {
	switch {
	case s.newest != nil:
		return *s.newest == q.next-1
	case s.head != nil:
		return len(q.ready) == 0 && *s.head == 0 || len(q.ready) > 0 && q.ready[0] == *s.head
	case s.empty:
		return len(q.ready)+len(q.leased) == 0
	}
	return len(q.ready) >= s.n
}

// step is that of a group, for what is about one stream.
func (q queue) step(in ask, out reply) (queue, bool) {
	switch in.op {
	case "put", "update":
		want := make([]uint64, in.n)
		for i := range want {
			want[i] = q.next + uint64(i)
		}
		if !slices.Equal(out.seqs, want) {
			return q, false
		}
		if q.next += uint64(in.n); in.op == "update" {
			q.ready, q.leased = nil, nil
		}
		q.ready = with(q.ready, want)
	case "take", "lease":
		if out.empty {
			return q, len(q.ready) == 0
		}
		n := len(out.seqs)
		if n == 0 || n > in.n || n > len(q.ready) || !slices.Equal(out.seqs, q.ready[:n]) {
			return q, false
		}
		if q.ready = q.ready[n:]; in.op == "take" {
			return q, true
		}
		if len(out.fences) != n {
			return q, false
		}
		q.leased = slices.Clone(q.leased)
		for i, seq := range out.seqs {
			q.leased = append(q.leased, held{seq, out.fences[i]})
		}
		slices.SortFunc(q.leased, func(a, b held) int { return int(a.seq) - int(b.seq) })
	case "ack", "return", "extend":
		if !q.holds(in.held) {
			return q, false
		}
		if in.op != "extend" {
			q.end(in.held, in.op == "return")
		}
	case "gone":
		return q, !q.has(in.held[0].seq)
	case "lapse":
		if q.holds(in.held) {
			q.end(in.held, true)
			return q, true
		}
		return q, !q.has(in.held[0].seq) // it is gone, by an update
	case "peek":
		if out.empty {
			return q, len(q.ready) == 0
		}
		return q, len(q.ready) > 0 && slices.Equal(out.seqs, q.ready[:1])
	case "after":
		return q, q.after(in, out)
	default:
		return q, false
	}
	return q, true
}

// after checks what was seen newer than a seq, leased or not.
func (q *queue) after(in ask, out reply) bool {
	all := q.ready
	if len(q.leased) > 0 {
		var leased []uint64
		for _, h := range q.leased {
			leased = append(leased, h.seq)
		}
		all = with(q.ready, leased)
	}
	i, found := slices.BinarySearch(all, in.after)
	if found {
		i++
	}
	if out.empty {
		return i == len(all)
	}
	return i < len(all) && slices.Equal(out.seqs, all[i:i+1])
}

func (q *queue) holds(all []held) bool {
	return !slices.ContainsFunc(all, func(h held) bool { return !slices.Contains(q.leased, h) })
}

func (q *queue) has(seq uint64) bool {
	_, ready := slices.BinarySearch(q.ready, seq)
	return ready || slices.ContainsFunc(q.leased, func(h held) bool { return h.seq == seq })
}

// end ends leases, which are held; the records are ready again or gone.
func (q *queue) end(all []held, ready bool) {
	q.leased = slices.DeleteFunc(slices.Clone(q.leased), func(h held) bool { return slices.Contains(all, h) })
	if !ready {
		return
	}
	var seqs []uint64
	for _, h := range all {
		seqs = append(seqs, h.seq)
	}
	q.ready = with(q.ready, seqs)
}

// replies returns the answers that would have changed something. Nobody gives
// up what may have leased a record.
func (g *group) replies(in ask) (all []reply) {
	switch in.op {
	case "put", "update":
		return []reply{g.put(in, 0)}
	case "take":
		from := []int{in.stream}
		if len(g.at(in.stream).ready) == 0 {
			from = []int{in.or}
		}
		ready := g.at(from[0]).ready
		for n := 1; n <= min(in.n, len(ready)); n++ {
			all = append(all, reply{stream: from[0], seqs: ready[:n]})
		}
	case "ack", "return", "extend":
		return []reply{{}}
	case "tx":
		if g.can(in.steps) {
			return []reply{{steps: g.outcome(in.steps)}}
		}
	}
	return all
}

// put is the answer to a put behind others of the same command.
func (g *group) put(in ask, behind uint64) (r reply) {
	for i := range in.n {
		r.seqs = append(r.seqs, g.at(in.stream).next+behind+uint64(i))
	}
	return r
}

// outcome is what the steps of a transaction are answered, which can be done.
func (g *group) outcome(steps []ask) []reply {
	replies := make([]reply, len(steps))
	var taken [groupStreams]int
	var puts [groupStreams]uint64
	for _, ops := range []string{"take", "update", "put"} {
		for i, s := range steps {
			at := s.stream % groupStreams
			switch {
			case s.op != ops:
			case s.op == "take":
				replies[i].seqs = g.at(s.stream).ready[taken[at] : taken[at]+s.n]
				taken[at] += s.n
			default:
				replies[i] = g.put(s, puts[at])
				puts[at] += uint64(s.n)
			}
		}
	}
	return replies
}

// with returns the sorted set a with b.
func with(a, b []uint64) []uint64 {
	c := append(slices.Clone(a), b...)
	slices.Sort(c)
	return c
}
