package memory

import (
	"bytes"
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm/internal/answer"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// Request is what a session asks for, at streams of one file that are known to be
// there.
type Request struct {
	Session gearsfs.SessionID
	Caller  gearsfs.Caller
	Command *wire.Command
	Ino     gearsfs.Ino
	Keys    []gearsfs.Key
	Retry   bool   // its client has asked before, and may have been served
	Logged  bool   // what of it is on disk was done
	Behind  bool   // it is a put, and an earlier one of its session waits for room
	Again   func() // has it asked for anew, from the start, where it is Held
}

// Outcome is what came of a request: its answer, or what the log is to do first,
// for the request then to be asked again as one that is Logged. That is the take
// with these Keys, which are on disk, or the settlement of these Receipts. One that is
// Held has no outcome yet.
type Outcome struct {
	Answer   *wire.Answer
	Keys     []gearsfs.Key
	Receipts []*wire.Receipt
	Held     bool
}

// A take of several keys may name streams of both kinds. It is served from one of
// them, the first that has a record: from memory at once, from the disk through
// the log, with the keys that are there. That is as atomic as any take: which
// stream it will be is decided before, and where that has nothing left by then
// the take waits on at all of them.
//
// A take that is asked for again may have been served from either side, without
// its client having heard of it. Answers from memory are found before; then the
// log has to say, for it knows those from the disk, and what is on its way there.

// Do does what a request asks for, once however often it is asked. It is called by
// what was pushed, and who pushed it then calls Wake.
func (m *Machine) Do(r *Request) Outcome {
	m.mu.Lock()
	defer m.mu.Unlock()
	if before := m.keptLocked(r.Session, r.Command); before != nil {
		return Outcome{Answer: before}
	}
	if r.adds() {
		at := Place{r.Ino, r.Keys[0]}
		if l := m.leaving[at]; l != nil {
			l.held = append(l.held, r.Again)
			return Outcome{Held: true}
		}
		if !m.node.InMemory(at) {
			return Outcome{Answer: answer.Of(errOnDisk)}
		}
	}
	var out Outcome
	var err error
	switch cmd := r.Command; {
	case r.Behind && !m.addsNothingLocked(r):
		err = gearsfs.ErrFull
	case cmd.GetTake() != nil:
		out.Answer, out.Keys, err = m.takeLocked(r, cmd.GetTake())
	case cmd.GetSettle() != nil:
		out.Answer, out.Receipts, err = m.settleAllLocked(r, cmd.GetSettle())
	default:
		out.Answer, err = m.doLocked(r, Place{r.Ino, r.Keys[0]})
	}
	switch {
	case err != nil:
		return Outcome{Answer: answer.Of(err)}
	case out.Answer != nil:
		m.keepLocked(r, out.Answer)
	}
	return out
}

// errOnDisk is of what has come for a stream that is on disk by now.
var errOnDisk = gearsfs.ErrUnsupported.Because("the stream's records are not in memory any more")

// kept are the answers of a session that it has not confirmed, by their numbers.
// They outlive their streams: one that is on disk by now is asked for again in vain
// in the log.
type kept struct {
	answers map[uint64]*wire.Answer
	ends    int // how often the session has ended
}

// MayKnow says whether an answer of a session is kept, or may come to be with what
// was pushed.
func (m *Machine) MayKnow(id gearsfs.SessionID) bool {
	m.workMu.Lock()
	busy := m.runs || len(m.work) > 0
	m.workMu.Unlock()
	if busy {
		return true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.answers[id] != nil
}

// Kept is the answer that a session's command had before, nil where it had none
// here. It is certain for who calls it from what was pushed.
func (m *Machine) Kept(id gearsfs.SessionID, cmd *wire.Command) *wire.Answer {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.keptLocked(id, cmd)
}

// keptLocked is the answer that an operation had before, if it had one. It is
// without the records whose leases have ended; where none is left the take begins
// anew, as it does in the log.
func (m *Machine) keptLocked(id gearsfs.SessionID, cmd *wire.Command) *wire.Answer {
	k := m.answers[id]
	if k == nil {
		return nil
	}
	for seq := range k.answers {
		if seq < cmd.Confirmed && !slices.Contains(cmd.Unconfirmed, seq) {
			delete(k.answers, seq)
		}
	}
	answer := k.answers[cmd.Seq]
	if answer == nil || cmd.Seq == 0 {
		return nil
	}
	answer = copyAnswer(answer)
	had := len(answer.Records)
	answer.Records = slices.DeleteFunc(answer.Records, func(rec *wire.TakenRecord) bool {
		return rec.Fence != 0 && !m.heldLocked(rec)
	})
	if had > 0 && len(answer.Records) == 0 {
		delete(k.answers, cmd.Seq)
		return nil
	}
	return answer
}

// heldLocked says whether a lease that was handed out lasts.
func (m *Machine) heldLocked(rec *wire.TakenRecord) bool {
	s := m.streams[Place{gearsfs.Ino(rec.Ino), gearsfs.Key(rec.Key)}]
	if s == nil {
		return false
	}
	m.dueLocked(s)
	out, ok := s.Out(gearsfs.Place{Pos: gearsfs.Pos(rec.Pos), Seq: gearsfs.Seq(rec.Seq)})
	return ok && out.Leased && out.Fence == rec.Fence
}

// keepLocked keeps an answer until the session confirms it.
func (m *Machine) keepLocked(r *Request, answer *wire.Answer) {
	seq := r.Command.Seq
	if seq == 0 {
		return
	}
	k := m.answers[r.Session]
	if k == nil {
		k = &kept{answers: make(map[uint64]*wire.Answer)}
		m.answers[r.Session] = k
	}
	k.answers[seq] = copyAnswer(answer)
}

// copyAnswer copies what a caller may write into.
func copyAnswer(a *wire.Answer) *wire.Answer {
	out := &wire.Answer{Ino: a.Ino, FirstSeq: a.FirstSeq, LastSeq: a.LastSeq, Records: make([]*wire.TakenRecord, len(a.Records))}
	for i, r := range a.Records {
		out.Records[i] = &wire.TakenRecord{
			Key: r.Key, Pos: r.Pos, Seq: r.Seq, Data: bytes.Clone(r.Data), Type: r.Type, Time: r.Time,
			Deliveries: r.Deliveries, Fence: r.Fence, Ino: r.Ino, Deadline: r.Deadline,
		}
	}
	return out
}

// takeLocked takes from the first stream in memory that has a record, or says with
// which of its keys the take is to go to the log first.
func (m *Machine) takeLocked(r *Request, take *wire.Take) (answer *wire.Answer, onDisk []gearsfs.Key, err error) {
	if err := file.CheckLease(take, r.Session); err != nil {
		return nil, nil, err
	}
	if err := m.state.MayWait(r.Ino, true, true, r.Caller); err != nil {
		return nil, nil, err
	}
	onDisk = slices.DeleteFunc(slices.Clone(r.Keys), func(key gearsfs.Key) bool { return m.node.InMemory(Place{r.Ino, key}) })
	if r.Retry && len(onDisk) > 0 && !r.Logged {
		return nil, onDisk, nil
	}
	drained := true
	for _, key := range r.Keys {
		at := Place{r.Ino, key}
		if slices.Contains(onDisk, key) {
			st := m.state.StreamState(r.Ino, key)
			if st.Ready > 0 && !r.Logged {
				return nil, onDisk, nil
			}
			drained = drained && st.Drained()
			continue
		}
		s := m.currentLocked(at)
		if s.State().Ready > 0 {
			answer, err = m.handOutLocked(r, s, take)
			return answer, nil, err
		}
		drained = drained && s.State().Sealed && s.State().Drained()
	}
	if drained {
		return nil, nil, gearsfs.ErrEnd
	}
	return nil, nil, gearsfs.ErrEmpty
}

// handOutLocked takes or leases records that are there.
func (m *Machine) handOutLocked(r *Request, s *queue, take *wire.Take) (*wire.Answer, error) {
	var taken []stream.Taken
	var err error
	if take.Lease {
		g := stream.Grant{Holder: r.Session, Fence: m.nextFence(), Tries: take.Tries}
		if take.ByReceipt {
			g.Holder = gearsfs.SessionID{}
		}
		if take.LeaseFor != 0 {
			g.Deadline = m.node.Now() + take.LeaseFor
		}
		taken, err = s.Lease(nil, int(take.Max), gearsfs.BatchBytesMax, g)
		m.fence += uint64(len(taken))
	} else {
		taken, err = s.Take(nil, int(take.Max), gearsfs.BatchBytesMax, false)
	}
	answer := &wire.Answer{Ino: uint64(s.at.Ino), Records: shown(s.at, taken)}
	s.Clean()
	m.touchLocked(s.at)
	return answer, err
}

// nextFence is the fence of the next lease: no former process gave it, and none
// did whose clock went right.
func (m *Machine) nextFence() uint64 {
	if m.fence == 0 {
		m.fence = m.node.Now()
	}
	return m.fence
}

// settleAllLocked settles leases of streams in memory. Where there are some on disk,
// too, it says which: these are to be settled in between. What can be seen to fail
// fails before anything is changed, but the settlement is one step only in each of
// the two places.
func (m *Machine) settleAllLocked(r *Request, settle *wire.Settle) (answer *wire.Answer, onDisk []*wire.Receipt, err error) {
	var here []*wire.Receipt
	for _, receipt := range settle.Receipts {
		if at, _ := receiptAt(receipt); m.node.InMemory(at) {
			here = append(here, receipt)
		} else {
			onDisk = append(onDisk, receipt)
		}
	}
	if err := file.CheckSettle(settle); err != nil {
		return nil, nil, err
	}
	if err := m.checkSettleLocked(r, here); err != nil {
		if r.Logged { // what is on disk was settled
			err = gearsfs.ErrGone.Because("a lease of a stream in memory has ended; those on disk were settled")
		}
		return nil, nil, err
	}
	if len(onDisk) > 0 && !r.Logged {
		return nil, onDisk, nil
	}
	return &wire.Answer{}, nil, m.settleLocked(settle, here)
}
