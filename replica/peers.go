package replica

import (
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/gearsfs/gearsfs"
)

// Peers carries messages to the other members of the group.
type Peers interface {
	// Send queues encoded messages for a member, in order. It may drop them, as
	// a network does, and never blocks. It owns the slice; the messages in it
	// may be another member's too and must not be changed.
	Send(to gearsfs.MemberID, messages [][]byte)
}

// commitDelay is how long members may stay without being told that what they
// have is committed. The next entry mostly comes sooner and tells it on its way.
// Told at once, each lone entry would travel, and be answered, twice.
const commitDelay = time.Millisecond

// flowDelay is commitDelay behind entries that followed each other more closely
// than that. Each of them took the news of the one before along, and to set a timer
// anew for each, which mostly wakes a thread, would be for nothing.
const flowDelay = 5 * time.Millisecond

// outbox are the messages that leave together. What only tells a member how much
// is committed stays for commitDelay at most, or flowDelay, unless somebody waits
// for it there (Proposal.Prompt).
type outbox struct {
	parcels []parcel
	encoded []encoded // the appends among them, which often are the same for all
	held    bool      // some messages stay
	prompt  bool      // they must not stay any longer
	late    lateness
}

// lateness sees to it that what stays leaves in time. The timer is not stopped when
// nothing stays any more: when it fires it looks whether what stays is what stayed
// when it was set, else it is set once more. It is set by who sets running, and
// running is unset before staying is asked, which is set before running is: so
// nothing stays without it.
type lateness struct {
	timer   timer
	running atomic.Bool
	staying atomic.Bool
	stays   atomic.Uint64 // how often something began to stay
	seen    atomic.Uint64 // stays, as of when the timer was set
	due     atomic.Bool   // it is time
}

// begin notes that something stays from now on.
func (t *lateness) begin() {
	t.staying.Store(true)
	n := t.stays.Add(1)
	if t.running.CompareAndSwap(false, true) {
		t.seen.Store(n)
		t.timer.Reset(commitDelay)
	}
}

// fire is called by the timer, and reports whether what stays is due.
func (t *lateness) fire() bool {
	n := t.stays.Load()
	if t.seen.Swap(n) != n {
		t.timer.Reset(flowDelay)
		return false
	}
	t.running.Store(false)
	if !t.staying.Load() {
		return false
	}
	t.due.Store(true)
	return true
}

type parcel struct {
	to       uint64
	messages []*raftpb.Message
}

type encoded struct {
	message *raftpb.Message
	bytes   []byte
}

// send gives messages to the peers: to each of them at once, and without those
// that a later one makes needless.
func (g *Group) send(messages []*raftpb.Message) error {
	o := &g.loop.outbox
	for _, m := range messages {
		switch {
		case raft.IsLocalMsgTarget(m.GetTo()), m.GetTo() == g.cfg.ID:
		case m.GetType() == raftpb.MsgSnap:
			if err := g.sendCopy(m); err != nil {
				return err
			}
		case g.cfg.Peers != nil:
			if t := m.GetType(); t == raftpb.MsgVote || t == raftpb.MsgPreVote {
				g.tellCommitted(m)
			}
			o.add(m)
		}
	}
	return g.post(false)
}

// post gives the peers what is for them, also what may stay if all is set.
func (g *Group) post(all bool) error {
	o := &g.loop.outbox
	was := o.held
	o.held = false
	if all {
		o.prompt = false
	}
	for i := range o.parcels {
		p := &o.parcels[i]
		if len(p.messages) == 0 {
			continue
		}
		if !all && len(p.messages) == 1 && onlyCommits(p.messages[0]) {
			o.held = true
			continue
		}
		out := make([][]byte, len(p.messages))
		for i, m := range p.messages {
			b, err := o.encode(m)
			if err != nil {
				return err
			}
			out[i] = b
		}
		clear(p.messages)
		p.messages = p.messages[:0]
		g.cfg.Peers.Send(gearsfs.MemberID(p.to), out)
	}
	clear(o.encoded)
	o.encoded = o.encoded[:0]
	switch {
	case o.held == was:
	case o.held:
		o.late.begin()
	default:
		o.late.staying.Store(false)
	}
	return nil
}

func onlyCommits(m *raftpb.Message) bool {
	return m.GetType() == raftpb.MsgApp && len(m.GetEntries()) == 0
}

func (o *outbox) add(m *raftpb.Message) {
	for i := range o.parcels {
		p := &o.parcels[i]
		if p.to != m.GetTo() {
			continue
		}
		if n := len(p.messages); n > 0 && replaces(m, p.messages[n-1]) {
			p.messages[n-1] = m
		} else {
			p.messages = append(p.messages, m)
		}
		return
	}
	o.parcels = append(o.parcels, parcel{to: m.GetTo(), messages: []*raftpb.Message{m}})
}

// replaces reports whether a receiver of next needs not hear prev, sent to it
// right before. Raft takes any loss; here nothing is lost.
func replaces(next, prev *raftpb.Message) bool {
	if next.GetType() != prev.GetType() || next.GetTerm() != prev.GetTerm() {
		return false
	}
	switch next.GetType() {
	case raftpb.MsgApp: // an empty one tells how much is committed
		return onlyCommits(prev) && next.GetIndex() >= prev.GetIndex() && next.GetCommit() >= prev.GetCommit()
	case raftpb.MsgAppResp:
		return !prev.GetReject() && !next.GetReject() && next.GetIndex() >= prev.GetIndex()
	case raftpb.MsgHeartbeat: // a later read round confirms the earlier ones
		return next.GetCommit() >= prev.GetCommit() && (len(prev.GetContext()) == 0 || len(next.GetContext()) > 0)
	case raftpb.MsgHeartbeatResp:
		return len(prev.GetContext()) == 0 || len(next.GetContext()) > 0
	}
	return false
}

// encode encodes m, only once where several get the same entries.
func (o *outbox) encode(m *raftpb.Message) ([]byte, error) {
	shared := m.GetType() == raftpb.MsgApp && len(m.GetEntries()) > 0
	if shared {
		for _, e := range o.encoded {
			if sameAppend(e.message, m) {
				return e.bytes, nil
			}
		}
	}
	b, err := encodeMessage(m)
	if err == nil && shared {
		o.encoded = append(o.encoded, encoded{m, b})
	}
	return b, err
}

// sameAppend reports whether a and b differ in nothing but their receiver.
func sameAppend(a, b *raftpb.Message) bool {
	return a.GetTerm() == b.GetTerm() && a.GetCommit() == b.GetCommit() &&
		len(a.GetEntries()) == len(b.GetEntries()) && a.GetEntries()[0] == b.GetEntries()[0]
}
