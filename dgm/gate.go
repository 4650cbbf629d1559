package dgm

import (
	"slices"
	"sync"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/replica"
	"github.com/gearsfs/gearsfs/wire"
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

// submit sends operations to the log, next to each other. Those of sessions
// that have ended meanwhile fail.
func (v *Volume) submit(ops ...*op) {
	var refused []*op
	for _, o := range ops {
		o.bytes = o.change.Command.SizeVT()
		if o.sess != nil && !o.sess.door.enter() {
			refused = append(refused, o)
		}
	}
	if refused != nil {
		ops = slices.DeleteFunc(slices.Clone(ops), func(o *op) bool { return slices.Contains(refused, o) })
		defer func() {
			for _, o := range refused {
				o.outcome(nil, gearsfs.ErrClosed)
			}
		}()
	}
	if len(ops) == 0 {
		return
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

// order sends one of the volume's own commands, on behalf of a session or of
// none. then, which may be nil, is called once.
func (v *Volume) order(s *session, cmd *wire.Command, then func(*wire.Answer, error)) {
	if then == nil {
		then = func(*wire.Answer, error) {}
	}
	v.submit(&op{vol: v, sess: s, change: &wire.Change{Command: cmd, Fast: true}, then: then})
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
	if o.sess != nil && o.sess.door.leave() {
		v.proposeEnd(o.sess)
	}
}
