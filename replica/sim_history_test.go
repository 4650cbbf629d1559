package replica

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// simHistory is what the group as a whole has done, and holds everything that
// nodes do and clients are told against it:
//
//   - an entry is the same on every node that applies it, and has the same
//     answers;
//   - its answers are those of a plain model with a perfect memory (simModel),
//     so no command takes effect twice;
//   - an operation takes effect after all that had ended before it began, and a
//     certain read shows all of that: with the model that is linearizability;
//   - a term has one leader, and nothing that was answered is ever missing.
type simHistory struct {
	s       *sim
	entries []simEntry // by index from 1
	model   *simModel
	leaders map[uint64]gearsfs.MemberID // by term
	members map[gearsfs.MemberID]bool   // of the group, as of the last change
	ended   uint64                      // the highest index that an operation which has ended depends on

	// lossFrom is the first index that a group of one may have lost in a crash.
	lossFrom uint64
	tenure   struct {
		term, time uint64        // log time of the first entry
		began      time.Duration // when that was
	}
	began    time.Duration // when the first entry was
	passed   time.Duration // of log time since then
	reads    int
	answers  int
	verifies int
}

type simEntry struct {
	term    uint64
	sum     uint32
	answers uint32
	entry   *wire.Entry // nil: a change of the group
	state   []byte      // its hash, where somebody took it
}

func newSimHistory(s *sim) *simHistory {
	return &simHistory{s: s, model: newSimModel(), leaders: map[uint64]gearsfs.MemberID{}, members: map[gearsfs.MemberID]bool{}, lossFrom: ^uint64(0)}
}

func (h *simHistory) last() uint64 { return uint64(len(h.entries)) }

// lead notes that a node leads in a term.
func (h *simHistory) lead(id gearsfs.MemberID, term uint64) {
	if other, ok := h.leaders[term]; ok && other != id {
		h.s.fail("term %d has two leaders, %d and %d", term, other, id)
	}
	h.leaders[term] = id
}

// applied notes that a node has applied an entry.
func (h *simHistory) applied(n *simNode, index, term uint64, e *wire.Entry, answers []*wire.Answer) {
	if len(answers) != len(e.Commands) {
		h.s.fail("node %d: entry %d has %d commands and got %d answers", n.id, index, len(e.Commands), len(answers))
		return
	}
	var buf []byte
	for _, a := range answers {
		b, _ := a.MarshalVT()
		buf = append(buf, b...)
	}
	encoded, _ := e.MarshalVT()
	fact := simEntry{term: term, sum: crc32.Checksum(encoded, castagnoli), answers: crc32.Checksum(buf, castagnoli), entry: e}
	if !h.known(n, index, fact) {
		return
	}
	if h.s.say != nil {
		for i, cmd := range e.Commands {
			h.s.note("entry %d, term %d: %v: %v", index, term, cmd, answers[i])
		}
	}
	h.clock(index, term, e)
	expected, err := h.model.apply(index, e)
	if err != nil {
		h.s.fail("entry %d: %w", index, err)
		return
	}
	for i, want := range expected {
		if want != nil && !sameAnswer(want, answers[i]) {
			h.s.fail("node %d: entry %d, command %d: answer %v, want %v, of %v", n.id, index, i, answers[i], want, e.Commands[i])
			return
		}
	}
}

// clock checks the log time of a new entry: it never falls, and while one node
// leads it goes as true time does, whatever that node's clock says.
func (h *simHistory) clock(index, term uint64, e *wire.Entry) {
	if len(e.Commands) == 0 {
		return
	}
	if e.Time < h.model.now {
		h.s.fail("entry %d: log time falls from %d to %d", index, h.model.now, e.Time)
	}
	if h.tenure.term != term {
		h.tenure.term, h.tenure.time, h.tenure.began = term, e.Time, h.s.now
	}
	if off := time.Duration(e.Time-h.tenure.time) - (h.s.now - h.tenure.began); off.Abs() > time.Minute {
		h.s.fail("entry %d: log time is wrong by %v in one term", index, off)
	}
	h.passes(index, e)
}

// passes checks that log time without its jumps is not faster than true time, but
// for what clocks drift: so no lease ends early because one is wrong.
func (h *simHistory) passes(index uint64, e *wire.Entry) {
	if h.model.now != 0 {
		h.passed += time.Duration(e.Time - h.model.now - e.Jump)
	} else {
		h.began = h.s.now
	}
	if passed := h.s.now - h.began; h.passed > passed+time.Minute {
		h.s.fail("entry %d: %v of log time have passed in %v", index, h.passed, passed)
	}
}

// changed notes that a node has applied a change of the group.
func (h *simHistory) changed(n *simNode, index, term uint64, conf, context []byte) {
	fact := simEntry{term: term, sum: crc32.Checksum(append(bytes.Clone(conf), context...), castagnoli)}
	if !h.known(n, index, fact) {
		return
	}
	var state raftpb.ConfState
	if err := proto.Unmarshal(conf, &state); err != nil {
		h.s.fail("node %d: entry %d: %w", n.id, index, err)
	}
	was := h.members
	h.members = map[gearsfs.MemberID]bool{}
	for _, ids := range [][]uint64{state.Voters, state.VotersOutgoing, state.Learners, state.LearnersNext} {
		for _, id := range ids {
			h.members[gearsfs.MemberID(id)] = true
		}
	}
	h.s.note("entry %d changes the group: %v", index, &state)
	for _, n := range h.s.nodes {
		n.removed = n.removed || was[n.id] && !h.members[n.id]
	}
}

// known checks an entry against what other nodes had there. It returns whether
// the entry is a new one.
func (h *simHistory) known(n *simNode, index uint64, fact simEntry) bool {
	h.s.mark(uint64(n.id), index, uint64(fact.sum), uint64(fact.answers))
	if h.s.failure != nil {
		return false
	}
	if index <= h.last() {
		had := &h.entries[index-1]
		switch {
		case had.term == fact.term && had.sum == fact.sum && had.answers == fact.answers:
			return false
		case had.term == fact.term && had.sum == fact.sum:
			h.s.fail("node %d: entry %d has other answers than elsewhere: %v", n.id, index, fact.entry)
			return false
		case index < h.lossFrom:
			h.s.fail("node %d applies another entry %d, of term %d: there was one of term %d", n.id, index, fact.term, had.term)
			return false
		}
		h.lose(n, index)
	}
	if index != h.last()+1 {
		h.s.fail("node %d applies entry %d, but nobody has applied %d", n.id, index, h.last()+1)
		return false
	}
	h.entries = append(h.entries, fact)
	h.lossFrom = ^uint64(0) // what could be lost is lost
	return h.s.failure == nil
}

// lose takes entries back that a group of one had not on disk when it crashed.
func (h *simHistory) lose(by *simNode, from uint64) {
	if h.ended >= from {
		h.s.fail("node %d has lost entries from %d on, but %d was answered", by.id, from, h.ended)
		return
	}
	for _, n := range h.s.nodes {
		if n != by && n.appliedMax >= from {
			h.s.fail("node %d has lost entries from %d on, but node %d has applied %d", by.id, from, n.id, n.appliedMax)
			return
		}
	}
	h.s.note("entries from %d to %d were never on disk, and are lost", from, h.last())
	entries := h.entries[:from-1]
	h.entries, h.model = nil, newSimModel()
	for i, e := range entries {
		h.entries = append(h.entries, e)
		if e.entry == nil {
			continue
		}
		if _, err := h.model.apply(uint64(i+1), e.entry); err != nil {
			h.s.fail("entry %d: %w", i+1, err)
		}
	}
}

// verified compares the hash of a node's state as of an entry.
func (h *simHistory) verified(n *simNode, index uint64, sum []byte) {
	if index > h.last() {
		return
	}
	e := &h.entries[index-1]
	if e.state == nil {
		e.state = sum
	}
	if !bytes.Equal(e.state, sum) {
		h.s.fail("node %d: the state at entry %d is not what it is elsewhere", n.id, index)
	}
	h.verifies++
}

// sameAnswer compares what the model knows of an answer.
func sameAnswer(want, got *wire.Answer) bool {
	if want.Code != got.Code || want.Code == 0 && (want.FirstSeq != got.FirstSeq || want.LastSeq != got.LastSeq) ||
		len(want.Records) != len(got.Records) {
		return false
	}
	for i, w := range want.Records {
		g := got.Records[i]
		if w.Key != g.Key || w.Seq != g.Seq || !bytes.Equal(w.Data, g.Data) || w.Deliveries != g.Deliveries || w.Fence != g.Fence {
			return false
		}
	}
	return true
}

// answered checks a change's answer that its client has got: entry index gave
// it, and the change began when floor was the highest index known to have ended.
func (h *simHistory) answered(id gearsfs.SessionID, seq uint64, a *wire.Answer, index, floor uint64) {
	h.answers++
	defer h.end(index)
	if index <= floor || index > h.last() {
		h.s.fail("command %d of %v was answered by entry %d, but it began after entry %d", seq, id, index, floor)
		return
	}
	first, ok := h.model.session(id).ever[seq]
	switch {
	case a.Code != 0 && ok:
		h.s.fail("command %d of %v was answered with code %d, but succeeded in entry %d", seq, id, a.Code, first.index)
	case a.Code != 0:
	case !ok:
		h.s.fail("command %d of %v was answered well and never succeeded", seq, id)
	case !sameAnswer(first.answer, a):
		h.s.fail("command %d of %v was answered with %v, but its first answer was %v", seq, id, a, first.answer)
	case first.index <= floor:
		h.s.fail("command %d of %v took effect in entry %d, but began after entry %d", seq, id, first.index, floor)
	}
}

// read checks what a certain read of streams has shown; it began when floor was
// the highest index known to have ended.
func (h *simHistory) read(keys []string, shown []streamAt, floor uint64) {
	h.seen(keys, shown, floor)
	for _, at := range shown {
		h.end(at.index)
	}
}

// seen is read for what is fresh, though it may not be on disk yet.
func (h *simHistory) seen(keys []string, shown []streamAt, floor uint64) {
	for i, got := range shown {
		h.reads++
		if got.index < floor {
			h.s.fail("a read of %s shows entry %d, but began after entry %d had been answered", keys[i], got.index, floor)
		}
		if want := h.model.at(keys[i], got.index); !want.shows(got) {
			h.s.fail("a read of %s at entry %d shows %+v, want %+v", keys[i], got.index, got, want)
		}
	}
}

// end notes that an operation has ended that depends on an entry.
func (h *simHistory) end(index uint64) { h.ended = max(h.ended, index) }

// finally compares a node with the history, when all is quiet.
func (h *simHistory) finally(n *simNode) error {
	if at, _ := n.machine.Applied(); at != h.last() {
		return fmt.Errorf("node %d stands at entry %d of %d", n.id, at, h.last())
	}
	for key := range h.model.streams {
		got, err := n.show(key)
		if err != nil {
			return fmt.Errorf("node %d: read %s: %w", n.id, key, err)
		}
		if want := h.model.at(key, got.index); !want.shows(got) {
			return fmt.Errorf("node %d: %s is %+v, want %+v", n.id, key, got, want)
		}
	}
	for _, err := range n.machine.Check() {
		return fmt.Errorf("node %d: %w", n.id, err)
	}
	return nil
}

// begin is for what was there before the simulation.
func (h *simHistory) begin(entries []*wire.Entry) {
	for i, e := range entries {
		h.entries = append(h.entries, simEntry{term: 1, entry: e})
		if e == nil {
			continue
		}
		if _, err := h.model.apply(uint64(i+1), e); err != nil {
			h.s.fail("entry %d: %w", i+1, err)
		}
	}
}
