package dgm

import (
	"errors"
	"slices"
	"sync"
	"time"

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
	closed   error // nothing passes any more, nor is held
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

// shut lets nothing pass any more because of why, and returns what it held.
func (g *gate) shut(why error) (held []*op) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, ops := range g.held {
		held = append(held, ops...)
	}
	g.held, g.closed = nil, why
	return held
}

// submit sends operations to the log, next to each other, but for those in memory and
// those that have to ask something first. Those of sessions
// that have ended meanwhile fail, and all where the tenure is over.
func (t *tenure) submit(ops ...*op) {
	if slices.ContainsFunc(ops, func(o *op) bool { return o.inMemory || o.asking }) {
		var here, others []*op
		for _, o := range ops {
			switch {
			case o.asking:
				o.logged = false
				t.ask(o)
			case o.inMemory:
				o.logged = false
				here = append(here, o)
			default:
				others = append(others, o)
			}
		}
		t.submitMemory(here...)
		ops = others
	}
	t.toLog(ops...)
}

// toLog is submit for what is for the log.
func (t *tenure) toLog(ops ...*op) {
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
	g := &t.gate
	g.mu.Lock()
	if why := g.closed; why != nil {
		g.mu.Unlock()
		for _, o := range ops {
			t.refuse(o, why)
		}
		return
	}
	if len(g.held) > 0 || !g.admitLocked(ops) {
		g.held = append(g.held, ops)
		g.mu.Unlock()
		return
	}
	g.mu.Unlock()
	t.proposeOps(ops)
}

// refuse ends an operation that the gate has not let through.
func (t *tenure) refuse(o *op, why error) {
	t.leaveSession(o)
	o.outcome(nil, why)
}

// orderRetry is when a command of the volume's own is tried again that the
// replica refused although this node leads: it is handing over, or was about to.
const orderRetry = 100 * time.Millisecond

// order sends one of the volume's own commands, on behalf of a session or of
// none. then, which may be nil, is called once.
func (t *tenure) order(s *session, cmd *wire.Command, then func(*wire.Answer, error)) {
	t.submit(&op{ten: t, sess: s, change: &wire.Change{Command: cmd, Fast: true}, then: func(answer *wire.Answer, err error) {
		switch {
		case errors.Is(err, gearsfs.ErrNotLeader) && t.ended() == nil:
			time.AfterFunc(orderRetry, func() { t.order(s, cmd, then) })
		case then != nil:
			then(answer, err)
		}
	}})
}

// proposeOps hands commands to the replica, unless the tenure is over. Each is at
// the desk until it is answered.
func (t *tenure) proposeOps(ops []*op) {
	if !t.desk.enterAs(len(ops)) {
		why := t.ended()
		for _, o := range ops {
			t.passed(o)
			o.outcome(nil, why)
		}
		return
	}
	if len(ops) == 1 {
		t.vol.group.Propose(ops[0].proposal())
	} else {
		batch := make([]*replica.Proposal, len(ops))
		for i, o := range ops {
			batch[i] = o.proposal()
		}
		t.vol.group.Propose(batch...)
	}
}

// passed notes that an operation's command has been answered and lets through
// what was held back for it.
func (t *tenure) passed(o *op) {
	g := &t.gate
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
		t.proposeOps(ops)
	}
	t.leaveSession(o)
}

// leaveSession is for an operation whose command is not on its way any more.
func (t *tenure) leaveSession(o *op) {
	if o.sess != nil && o.sess.door.leave() {
		t.proposeEnd(o.sess)
	}
}
