package replica

import (
	"fmt"
	"slices"
	"sort"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// simModel is what a volume with one file of streams has to be, as plain lists,
// with a memory of every command that ever succeeded: the committed log is the
// order of all operations, and the model says what each of them answers.
type simModel struct {
	now      uint64
	times    []simMoment // of all entries
	fence    uint64
	streams  map[string]*simStream
	sessions map[gearsfs.SessionID]*simSession
	data     map[string]bool // of all records that ever were
	wrong    error           // the first promise that was broken
}

type simStream struct {
	records  []*simRecord                 // what lives, in order
	next     uint64                       // seq
	limit    uint64                       // of records; 0: none
	versions []streamAt                   // one per entry that changed it
	latest   map[gearsfs.SessionID]uint64 // the last command of each session that put here
}

type simRecord struct {
	seq        uint64
	data       string
	holder     gearsfs.SessionID
	fence      uint64 // 0: ready
	deliveries uint32
}

// streamAt is what certain reads show of a stream from an index on.
type streamAt struct {
	index         uint64
	ready, leased uint64
	first         uint64 // seq of the first record that is ready; 0: none is
	next          uint64 // seq
}

func (a streamAt) shows(b streamAt) bool {
	b.index = a.index
	return a == b
}

// simSession is a session as the state must have it, and what it ever did.
type simSession struct {
	known       bool // it has a row
	confirmed   uint64
	unconfirmed []uint64
	closed      uint64
	answers     map[uint64]*wire.Answer // that a retry gets again
	blocked     []simBlocked            // puts that found no room
	ever        map[uint64]simFirst     // every command that succeeded
}

type simBlocked struct {
	key     string
	seq     uint64
	refused bool // for good
}

// simFirst is a command's success: where, and its answer.
type simFirst struct {
	index  uint64
	answer *wire.Answer
}

func newSimModel() *simModel {
	return &simModel{fence: 1, streams: map[string]*simStream{}, sessions: map[gearsfs.SessionID]*simSession{}, data: map[string]bool{}}
}

func (m *simModel) stream(key string) *simStream {
	s := m.streams[key]
	if s == nil {
		s = &simStream{next: 1, latest: map[gearsfs.SessionID]uint64{}}
		m.streams[key] = s
	}
	return s
}

func (m *simModel) session(id gearsfs.SessionID) *simSession {
	s := m.sessions[id]
	if s == nil {
		s = &simSession{ever: map[uint64]simFirst{}}
		m.sessions[id] = s
	}
	return s
}

// apply applies an entry and returns what each command answers. An error is a
// promise that the state can't keep whatever it answers.
func (m *simModel) apply(index uint64, e *wire.Entry) ([]*wire.Answer, error) {
	m.pass(e)
	answers := make([]*wire.Answer, len(e.Commands))
	for i, cmd := range e.Commands {
		a, err := m.command(index, cmd)
		if err != nil {
			return nil, fmt.Errorf("command %d of %v: %w", cmd.Seq, sessionOf(cmd), err)
		}
		answers[i] = a
	}
	for _, s := range m.sessions {
		if s.known && s.closed != 0 && s.closed <= m.ago(gearsfs.SessionTTL) {
			s.forget()
		}
	}
	for _, s := range m.streams {
		s.note(index)
	}
	return answers, m.wrong
}

// simMoment is an entry's log time, and how much of it has passed without jumps.
type simMoment struct{ time, passed uint64 }

func (m *simModel) pass(e *wire.Entry) {
	if e.Time <= m.now {
		return
	}
	var passed uint64
	if n := len(m.times); n > 0 {
		passed = m.times[n-1].passed + e.Time - m.now - e.Jump
	}
	m.now = e.Time
	m.times = append(m.times, simMoment{e.Time, passed})
}

// ago is the log time from which d has passed without jumps.
func (m *simModel) ago(d time.Duration) uint64 {
	last := m.times[len(m.times)-1].passed
	if last < uint64(d) {
		return 0 // before all that is known here
	}
	i := sort.Search(len(m.times), func(i int) bool { return m.times[i].passed > last-uint64(d) }) - 1
	return m.times[i].time + last - uint64(d) - m.times[i].passed
}

func (s *simSession) forget() {
	*s = simSession{ever: s.ever}
}

// note remembers what the stream shows from index on.
func (s *simStream) note(index uint64) {
	at := streamAt{index: index, next: s.next}
	for _, r := range s.records {
		switch {
		case r.fence != 0:
			at.leased++
		case at.ready == 0:
			at.first = r.seq
			fallthrough
		default:
			at.ready++
		}
	}
	if n := len(s.versions); n == 0 || !s.versions[n-1].shows(at) {
		s.versions = append(s.versions, at)
	}
}

// at returns what a read of key shows when the state is at index.
func (m *simModel) at(key string, index uint64) streamAt {
	s := m.streams[key]
	found := streamAt{next: 1}
	if s == nil {
		return found
	}
	for i := len(s.versions) - 1; i >= 0; i-- {
		if s.versions[i].index <= index {
			return s.versions[i]
		}
	}
	return found
}

func sessionOf(cmd *wire.Command) gearsfs.SessionID {
	return gearsfs.SessionID{Minted: int64(cmd.SessionMinted), Salt: cmd.SessionSalt}
}

func refused(err *gearsfs.Error) *wire.Answer { return &wire.Answer{Code: uint32(err.Code)} }

func (m *simModel) command(index uint64, cmd *wire.Command) (*wire.Answer, error) {
	id := sessionOf(cmd)
	if cmd.Seq == 0 || id.IsZero() {
		return m.dispatch(id, nil, cmd), nil
	}
	s := m.session(id)
	if !s.known && id.Minted < int64(m.ago(gearsfs.SessionTTL)) {
		return refused(gearsfs.ErrSession), nil
	}
	if s.known && cmd.Confirmed > s.confirmed {
		s.confirm(cmd)
	}
	if s.known && s.isConfirmed(cmd.Seq) {
		return refused(gearsfs.ErrSession), nil
	}
	if first := s.answers[cmd.Seq]; first != nil {
		if m.holds(id, first) {
			return first, nil
		}
		delete(s.answers, cmd.Seq)
		delete(s.ever, cmd.Seq) // what it leased went back
	} else if first, twice := s.ever[cmd.Seq]; twice && !leases(first.answer) {
		return nil, fmt.Errorf("it succeeded in entry %d and is applied again", first.index)
	}
	a := m.dispatch(id, s, cmd)
	if a.Code == 0 {
		m.succeeded(index, id, s, cmd, a)
	}
	return a, nil
}

func leases(a *wire.Answer) bool { return len(a.Records) > 0 && a.Records[0].Fence != 0 }

// holds says whether a session still holds all that an answer leased to it.
func (m *simModel) holds(id gearsfs.SessionID, a *wire.Answer) bool {
	return !slices.ContainsFunc(a.Records, func(r *wire.TakenRecord) bool {
		return r.Fence != 0 && m.held(id, r.Key, r.Fence) == nil
	})
}

func (s *simSession) isConfirmed(seq uint64) bool {
	return seq < s.confirmed && !slices.Contains(s.unconfirmed, seq)
}

func (s *simSession) confirm(cmd *wire.Command) {
	s.confirmed, s.unconfirmed = cmd.Confirmed, cmd.Unconfirmed
	for seq := range s.answers {
		if s.isConfirmed(seq) {
			delete(s.answers, seq)
		}
	}
	s.blocked = slices.DeleteFunc(s.blocked, func(b simBlocked) bool { return s.isConfirmed(b.seq) })
}

// open gives a session its row.
func (s *simSession) open(cmd *wire.Command) {
	if !s.known {
		s.known, s.answers = true, map[uint64]*wire.Answer{}
		s.confirmed, s.unconfirmed = cmd.Confirmed, cmd.Unconfirmed
	}
}

func (m *simModel) succeeded(index uint64, id gearsfs.SessionID, s *simSession, cmd *wire.Command, a *wire.Answer) {
	switch cmd.Op.(type) {
	case *wire.Command_EndSession:
		return
	case *wire.Command_Confirm:
		if cmd.Close && !s.known {
			return
		}
		s.open(cmd)
	default:
		s.open(cmd)
		s.answers[cmd.Seq] = a
		s.ever[cmd.Seq] = simFirst{index, a}
	}
	s.closed = 0
	if cmd.Close {
		s.closed = m.now
		m.returnLeases(id)
	}
}

func (m *simModel) dispatch(id gearsfs.SessionID, s *simSession, cmd *wire.Command) *wire.Answer {
	switch op := cmd.Op.(type) {
	case *wire.Command_Put:
		return m.put(id, s, cmd, op.Put)
	case *wire.Command_Take:
		return m.take(id, op.Take)
	case *wire.Command_Settle:
		return m.settle(id, op.Settle)
	case *wire.Command_Configure:
		m.stream(op.Configure.Key).limit = op.Configure.LimitRecords
		return &wire.Answer{Ino: simFile}
	case *wire.Command_EndSession:
		m.endSession(op.EndSession)
		return &wire.Answer{}
	case *wire.Command_Confirm:
		return &wire.Answer{}
	}
	return nil // none of the model's
}

func (m *simModel) put(id gearsfs.SessionID, known *simSession, cmd *wire.Command, op *wire.Put) *wire.Answer {
	s := m.stream(op.Key)
	full := s.limit > 0 && len(s.records) > 0 && uint64(len(s.records)+len(op.Records)) > s.limit
	if known == nil {
		if full {
			return refused(gearsfs.ErrFull)
		}
		return m.append(s, id, cmd, op)
	}
	behind := false
	for i := 0; i < len(known.blocked); i++ {
		switch b := &known.blocked[i]; {
		case b.key != op.Key || b.seq > cmd.Seq || b.refused && b.seq < cmd.Seq:
		case b.refused:
			return refused(gearsfs.ErrFull)
		case b.seq < cmd.Seq:
			behind = behind || !op.Retry
		default:
			known.blocked = slices.Delete(known.blocked, i, i+1)
			i--
		}
	}
	if full || behind {
		known.open(cmd)
		known.blocked = append(known.blocked, simBlocked{key: op.Key, seq: cmd.Seq})
		return refused(gearsfs.ErrFull)
	}
	if len(op.Refused) > 0 {
		known.open(cmd)
	}
	for i := range known.blocked {
		if b := &known.blocked[i]; b.key == op.Key && b.seq < cmd.Seq && slices.Contains(op.Refused, b.seq) {
			b.refused = true
		}
	}
	for _, seq := range op.Refused {
		listed := slices.ContainsFunc(known.blocked, func(b simBlocked) bool { return b.seq == seq })
		if !listed && known.answers[seq] == nil && !known.isConfirmed(seq) {
			known.blocked = append(known.blocked, simBlocked{op.Key, seq, true})
		}
	}
	return m.append(s, id, cmd, op)
}

func (m *simModel) append(s *simStream, id gearsfs.SessionID, cmd *wire.Command, op *wire.Put) *wire.Answer {
	a := &wire.Answer{Ino: simFile, FirstSeq: s.next}
	for _, r := range op.Records {
		if m.data[string(r.Data)] && m.wrong == nil {
			m.wrong = fmt.Errorf("record %s is put twice", r.Data)
		}
		m.data[string(r.Data)] = true
		s.records = append(s.records, &simRecord{seq: s.next, data: string(r.Data)})
		a.LastSeq = s.next
		s.next++
	}
	if was := s.latest[id]; cmd.Seq != 0 && was > cmd.Seq && m.wrong == nil {
		m.wrong = fmt.Errorf("put %d of %v is behind its put %d", cmd.Seq, id, was)
	}
	s.latest[id] = cmd.Seq
	return a
}

func (m *simModel) take(id gearsfs.SessionID, op *wire.Take) *wire.Answer {
	for _, key := range op.Keys {
		s := m.stream(key)
		a := &wire.Answer{Ino: simFile}
		for _, r := range s.records {
			if r.fence != 0 || len(a.Records) == int(op.Max) {
				continue
			}
			r.deliveries++
			t := &wire.TakenRecord{Ino: simFile, Key: key, Seq: r.seq, Data: []byte(r.data), Deliveries: r.deliveries}
			if op.Lease {
				r.fence, r.holder = m.fence, id
				t.Fence = m.fence
				m.fence++
			}
			a.Records = append(a.Records, t)
		}
		if len(a.Records) == 0 {
			continue
		}
		if !op.Lease {
			for _, t := range a.Records {
				s.remove(t.Seq)
			}
		}
		return a
	}
	return refused(gearsfs.ErrEmpty)
}

func (s *simStream) remove(seq uint64) {
	s.records = slices.DeleteFunc(s.records, func(r *simRecord) bool { return r.seq == seq })
}

// held returns the record on which a session holds a lease.
func (m *simModel) held(id gearsfs.SessionID, key string, fence uint64) *simRecord {
	for _, r := range m.stream(key).records {
		if fence != 0 && r.fence == fence && r.holder == id {
			return r
		}
	}
	return nil
}

func (m *simModel) settle(id gearsfs.SessionID, op *wire.Settle) *wire.Answer {
	for _, r := range op.Receipts {
		if m.held(id, r.Key, r.Fence) == nil {
			return refused(gearsfs.ErrGone)
		}
	}
	for _, r := range op.Receipts {
		rec := m.held(id, r.Key, r.Fence)
		rec.fence, rec.holder = 0, gearsfs.SessionID{}
		if !op.Return {
			m.stream(r.Key).remove(rec.seq)
		}
	}
	return &wire.Answer{}
}

func (m *simModel) returnLeases(id gearsfs.SessionID) {
	for _, s := range m.streams {
		for _, r := range s.records {
			if r.holder == id {
				r.fence, r.holder = 0, gearsfs.SessionID{}
			}
		}
	}
}

func (m *simModel) endSession(op *wire.EndSession) {
	id := gearsfs.SessionID{Minted: int64(op.SessionMinted), Salt: op.SessionSalt}
	if s := m.sessions[id]; s != nil && s.known {
		if op.Forget {
			s.forget()
		} else {
			s.closed = m.now
		}
	}
	m.returnLeases(id)
}
