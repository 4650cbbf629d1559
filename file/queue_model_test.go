package file

import (
	"maps"
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// queueModel is one file's streams as plain lists.
type queueModel struct {
	streams map[string]*streamModel
	fence   uint64
	now     uint64 // of the entry to come
	blocked map[blockedModel][]blockedHere
	failed  int             // step of the last transaction that failed
	settled map[uint64]bool // fences that steps of this transaction have settled
}

// blockedHere found no room: it waits for some, or is refused for good.
type blockedHere struct {
	seq     uint64
	refused bool
}

type blockedModel struct {
	key string
	id  gearsfs.SessionID
}

type streamModel struct {
	recs   []*recModel // what lives, in order
	next   uint64      // seq
	sealed bool
	limits gearsfs.Limits
	rulesModel
	careModel
}

type recModel struct {
	seq        uint64
	data       string
	typ        string
	holder     *sessionModel
	fence      uint64 // 0 is ready
	deliveries uint32
	timeModel
}

type sessionModel struct {
	id        gearsfs.SessionID
	seq       uint64
	confirmed uint64
	known     bool // it has a row
	done      []doneModel
}

// doneModel is a command that succeeded and what it was answered with.
type doneModel struct {
	cmd    *wire.Command
	answer *wire.Answer
}

func (s *streamModel) count() (records, leased, bytes uint64) {
	for _, r := range s.recs {
		bytes += uint64(len(r.data))
		switch {
		case r.fence != 0:
			leased++
		case r.ready():
			records++
		}
	}
	return records, leased, bytes
}

func (s *streamModel) fits(n int, bytes uint64) bool {
	_, _, held := s.count()
	n, bytes = n+len(s.recs)+s.gone, bytes+held+s.goneBytes
	return len(s.recs)+s.gone == 0 || (s.limits.Records == 0 || uint64(n) <= s.limits.Records) &&
		(s.limits.Bytes == 0 || bytes <= s.limits.Bytes)
}

func (m *queueModel) stream(key string) *streamModel {
	s := m.streams[key]
	if s == nil {
		s = &streamModel{next: 1}
		m.streams[key] = s
	}
	return s
}

func (m *queueModel) put(s *sessionModel, cmd *wire.Command, op *wire.Put, now uint64) (*wire.Answer, error) {
	fresh, seen := m.streams[op.Key].fresh(op.Records, map[string]bool{}, now)
	if len(op.Records) > 0 || op.Seal {
		known := m.streams[op.Key]
		if len(fresh) == 0 {
			known = nil // it needs no room, but waits for its turn
		}
		if err := known.admits(fresh); err != nil {
			return nil, err
		}
		bytes := bytesOf(fresh)
		if known.tooBig(len(fresh), bytes) {
			return nil, gearsfs.ErrTooBig
		}
		at := blockedModel{op.Key, s.id}
		waits := m.blocked[at]
		adds := len(fresh) > 0 || op.Seal
		if adds && slices.Contains(waits, blockedHere{cmd.Seq, true}) {
			return nil, gearsfs.ErrFull
		}
		behind := !op.Retry && slices.ContainsFunc(waits, func(b blockedHere) bool { return b.seq < cmd.Seq && !b.refused })
		full := adds && (behind || known != nil && known.full != gearsfs.FullDropOldest && !known.fits(len(fresh), bytes))
		waits = slices.DeleteFunc(waits, func(b blockedHere) bool { return b == blockedHere{cmd.Seq, false} })
		st := m.streams[op.Key]
		switch {
		case full:
			waits = append(waits, blockedHere{cmd.Seq, st != nil && st.full == gearsfs.FullRefuse})
			s.known = true
		case adds:
			for i := range waits {
				waits[i].refused = waits[i].refused || waits[i].seq < cmd.Seq && slices.Contains(op.Refused, waits[i].seq)
			}
		}
		m.blocked[at] = waits
		if full {
			return nil, gearsfs.ErrFull
		}
	}
	st := m.stream(op.Key)
	a := &wire.Answer{}
	if len(op.Records) == 1 {
		a.FirstSeq, a.LastSeq = seen, seen
	}
	st.makeRoom(fresh)
	st.add(fresh, a, now)
	st.delay(len(fresh), op, now)
	st.sealed = st.sealed || op.Seal
	return a, nil
}

func (m *queueModel) take(s *sessionModel, op *wire.Take) (*wire.Answer, error) {
	ended := true
	for _, key := range op.Keys {
		st := m.streams[key]
		if st == nil {
			ended = false
			continue
		}
		ended = ended && st.sealed && len(st.recs) == 0
		a := &wire.Answer{}
		for _, r := range st.recs {
			if !r.ready() || len(a.Records) == int(op.Max) {
				continue
			}
			r.deliveries++
			t := &wire.TakenRecord{Key: key, Seq: r.seq, Data: []byte(r.data), Type: r.typ, Deliveries: r.deliveries}
			if op.Lease {
				m.fence++
				r.fence, r.holder = m.fence, s
				r.lease(op, m.now)
				t.Fence, t.Deadline = r.fence, r.until
			}
			a.Records = append(a.Records, t)
		}
		if len(a.Records) == 0 {
			continue
		}
		if !op.Lease {
			st.recs = slices.DeleteFunc(st.recs, func(r *recModel) bool {
				return slices.ContainsFunc(a.Records, func(t *wire.TakenRecord) bool { return t.Seq == r.seq })
			})
		}
		return a, nil
	}
	if ended {
		return nil, gearsfs.ErrEnd
	}
	return nil, gearsfs.ErrEmpty
}

func (m *queueModel) find(s *sessionModel, key string, fence uint64) *recModel {
	if st := m.streams[key]; st != nil {
		for _, r := range st.recs {
			if r.fence == fence && (r.holder == s || r.receipt) {
				return r
			}
		}
	}
	return nil
}

func (m *queueModel) settle(s *sessionModel, op *wire.Settle) (*wire.Answer, error) {
	seen := m.settled
	if seen == nil {
		seen = make(map[uint64]bool)
	}
	for _, r := range op.Receipts {
		if m.find(s, r.Key, r.Fence) == nil || seen[r.Fence] {
			return nil, gearsfs.ErrGone
		}
		seen[r.Fence] = true
	}
	for _, r := range op.Receipts {
		rec := m.find(s, r.Key, r.Fence)
		switch {
		case op.Return:
			m.comeBack(r.Key, rec, op.Tries, op.Delay)
		case op.Extend != 0:
			rec.extend(m.now, op.Extend)
		default:
			m.streams[r.Key].remove(rec)
		}
	}
	return &wire.Answer{}, nil
}

func (m *queueModel) configure(op *wire.Configure) (*wire.Answer, error) {
	if st := m.streams[op.Key]; st != nil && st.appendOnly && (op.Drop || op.Clear) {
		return nil, gearsfs.ErrPermission
	}
	switch {
	case op.Settings != nil:
		m.rules(op.Key, op.Settings)
		m.care(op.Key, op.Settings)
	case op.Drop:
		delete(m.streams, op.Key)
	case op.Clear:
		if st := m.streams[op.Key]; st != nil {
			st.recs = nil
		}
	case op.SetLimits:
		m.stream(op.Key).limits = gearsfs.Limits{Records: op.LimitRecords, Bytes: op.LimitBytes}
	case op.Seal != nil:
		m.stream(op.Key).sealed = *op.Seal
	}
	return &wire.Answer{}, nil
}

func (m *queueModel) end(s *sessionModel) {
	for _, key := range slices.Sorted(maps.Keys(m.streams)) {
		for _, r := range slices.Clone(m.streams[key].recs) {
			if r.holder == s && !r.receipt {
				m.comeBack(key, r, 0, 0)
			}
		}
	}
}

func (m *queueModel) confirm(s *sessionModel) {
	s.done = slices.DeleteFunc(s.done, func(d doneModel) bool { return d.cmd.Seq < s.confirmed })
	for at := range m.blocked {
		if at.id == s.id {
			m.blocked[at] = slices.DeleteFunc(m.blocked[at], func(b blockedHere) bool { return b.seq < s.confirmed })
		}
	}
}
