package dgm

import (
	"sync"

	"github.com/gearsfs/gearsfs/replica"
)

// What the gate lets through at once: below what the replica refuses, which
// counts the log's entries and the volume's own commands too.
const (
	gateBytes    = 40 << 20
	gateCommands = 48 << 10
)

// gate holds commands back while too many are on their way through the log, in
// their order. What it holds is bounded by what connections may have in flight.
type gate struct {
	mu       sync.Mutex // not held over a call out
	bytes    int
	commands int
	held     [][]*op
}

func (g *gate) admitLocked(ops []*op) bool {
	bytes := 0
	for _, o := range ops {
		bytes += o.bytes
	}
	if g.commands > 0 && (g.bytes+bytes > gateBytes || g.commands+len(ops) > gateCommands) {
		return false
	}
	g.bytes += bytes
	g.commands += len(ops)
	return true
}

// submit sends operations to the log, next to each other.
func (v *Volume) submit(ops ...*op) {
	if len(ops) == 0 {
		return
	}
	for _, o := range ops {
		o.bytes = o.change.Command.SizeVT()
	}
	g := &v.gate
	g.mu.Lock()
	if len(g.held) > 0 || !g.admitLocked(ops) {
		g.held = append(g.held, ops)
		g.mu.Unlock()
		return
	}
	g.mu.Unlock()
	v.proposeOps(ops)
}

func (v *Volume) proposeOps(ops []*op) {
	if len(ops) == 1 {
		v.group.Propose(ops[0].proposal())
		return
	}
	batch := make([]*replica.Proposal, len(ops))
	for i, o := range ops {
		batch[i] = o.proposal()
	}
	v.group.Propose(batch...)
}

// passed notes that an operation's command has been answered and lets through
// what was held back for it.
func (v *Volume) passed(o *op) {
	g := &v.gate
	g.mu.Lock()
	g.bytes -= o.bytes
	g.commands--
	var next [][]*op
	for len(g.held) > 0 && g.admitLocked(g.held[0]) {
		next = append(next, g.held[0])
		g.held[0] = nil
		g.held = g.held[1:]
	}
	g.mu.Unlock()
	for _, ops := range next {
		v.proposeOps(ops)
	}
}
