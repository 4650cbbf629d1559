package file

import (
	"fmt"
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// modelIDsMax is how many ids the streams of the model remember.
const modelIDsMax = 6

// rulesModel is what a stream's settings say about puts, and its ids.
type rulesModel struct {
	typ        string
	appendOnly bool
	window     uint64
	ids        []idModel // the oldest first
}

type idModel struct {
	id   string
	seq  uint64
	time uint64
}

// knows returns the seq of the record that was put under an id.
func (s *streamModel) knows(id string, now uint64) (seq uint64, ok bool) {
	for _, k := range s.ids {
		if k.id == id && now-k.time < s.idWindow() {
			return k.seq, true
		}
	}
	return 0, false
}

func (s *streamModel) idWindow() uint64 {
	if s.window == 0 {
		return uint64(gearsfs.IDWindowDefault)
	}
	return s.window
}

// remember notes an id, and forgets those that have left the window. What is
// put again after it left takes its old number with it, which counts until it
// is forgotten: so here it stays in the list, without a seq.
func (s *streamModel) remember(id string, seq, now uint64) {
	for i := range s.ids {
		if s.ids[i].id == id {
			s.ids[i].id = ""
		}
	}
	s.ids = append(s.ids, idModel{id, seq, now})
}

func (s *streamModel) forget(now uint64) {
	for len(s.ids) > 0 {
		if k := s.ids[0]; k.id != "" && len(s.ids) <= modelIDsMax && now-k.time < s.idWindow() {
			break
		}
		s.ids = s.ids[1:]
	}
}

// fresh returns the records that are to be put, and the seq of the last one
// that is known.
func (s *streamModel) fresh(records []*wire.NewRecord, seen map[string]bool, now uint64) (fresh []*wire.NewRecord, known uint64) {
	for _, r := range records {
		if r.Id == "" {
			fresh = append(fresh, r)
			continue
		}
		if seen[r.Id] {
			continue
		}
		seen[r.Id] = true
		if s != nil {
			if seq, ok := s.knows(r.Id, now); ok {
				known = seq
				continue
			}
		}
		fresh = append(fresh, r)
	}
	return fresh, known
}

// admits returns why records can't be put, limits apart.
func (s *streamModel) admits(records []*wire.NewRecord) error {
	switch {
	case len(records) == 0 || s == nil:
	case s.sealed:
		return gearsfs.ErrSealed
	case s.typ != "" && slices.ContainsFunc(records, func(r *wire.NewRecord) bool { return r.Type != s.typ }):
		return gearsfs.ErrType
	}
	return nil
}

// add puts records.
func (s *streamModel) add(records []*wire.NewRecord, a *wire.Answer, now uint64) {
	ids := false
	for i, r := range records {
		if i == 0 {
			a.FirstSeq = s.next
		}
		a.LastSeq = s.next
		s.recs = append(s.recs, &recModel{seq: s.next, data: string(r.Data), typ: r.Type, timeModel: timeModel{time: now}})
		if r.Id != "" {
			s.remember(r.Id, s.next, now)
			ids = true
		}
		s.next++
	}
	if ids {
		s.forget(now)
	}
}

func (m *queueModel) update(op *wire.Update, now uint64) (*wire.Answer, error) {
	st := m.streams[op.Key]
	fresh, known := st.fresh([]*wire.NewRecord{op.Record}, map[string]bool{}, now)
	if len(fresh) == 0 {
		return &wire.Answer{FirstSeq: known, LastSeq: known}, nil
	}
	newest := uint64(0)
	if st != nil {
		newest = st.next - 1
	}
	if err := st.admits(fresh); err != nil {
		return nil, err
	}
	switch {
	case st != nil && st.appendOnly:
		return nil, gearsfs.ErrPermission
	case op.IfSeq != nil && *op.IfSeq != newest:
		return nil, gearsfs.ErrUnmet
	}
	st = m.stream(op.Key)
	st.recs = nil
	a := &wire.Answer{}
	st.add(fresh, a, now)
	return a, nil
}

func (m *queueModel) move(op *wire.Move, now uint64) (*wire.Answer, error) {
	a := &wire.Answer{}
	if op.Key == op.To {
		return nil, gearsfs.ErrInvalid
	}
	for _, r := range m.ready(op.Key) {
		record := []*wire.NewRecord{{Data: []byte(r.data), Type: r.typ}}
		to := m.streams[op.To]
		err := to.admits(record)
		if err == nil {
			err = to.room(record)
		}
		switch {
		case err != nil && a.Count == 0:
			return nil, err
		case err != nil || op.Max != 0 && a.Count == op.Max:
			return a, nil
		}
		first := a.FirstSeq
		m.stream(op.To).makeRoom(record)
		m.stream(op.To).add(record, a, now)
		if a.Count++; first != 0 {
			a.FirstSeq = first
		}
		from := m.streams[op.Key]
		from.recs = slices.DeleteFunc(from.recs, func(x *recModel) bool { return x == r })
	}
	return a, nil
}

// rules changes settings.
func (m *queueModel) rules(key string, set *wire.Settings) {
	st := m.stream(key)
	if set.Type != nil {
		st.typ = *set.Type
	}
	if set.AppendOnly != nil {
		st.appendOnly = *set.AppendOnly
	}
	if set.IdWindow != nil {
		if *set.IdWindow != st.window {
			st.idsDue = 0
		}
		st.window = *set.IdWindow
	}
}

// record makes a record to be put, now and then with an id or a type.
func (p *queuePlayer) record(size int) *wire.NewRecord {
	r := &wire.NewRecord{Data: fmt.Append(make([]byte, 0, size), p.rng.Uint32())}
	if p.rng.IntN(3) == 0 {
		r.Id = fmt.Sprintf("id%d", p.rng.IntN(10))
	}
	if p.rng.IntN(4) == 0 {
		r.Type = pick(p.rng, []string{"t", "u"})
	}
	return r
}

func (p *queuePlayer) updateOp(key string) *wire.Update {
	op := &wire.Update{Target: inRoot, Key: key, Record: p.record(0)}
	if p.rng.IntN(2) == 0 {
		seq := uint64(0)
		if st := p.model.streams[key]; st != nil {
			seq = st.next - 1 + p.rng.Uint64N(2)
		}
		op.IfSeq = &seq
	}
	return op
}

func (p *queuePlayer) rulesOp(key string) *wire.Configure {
	set := &wire.Settings{}
	typ, appendOnly, window := pick(p.rng, []string{"", "", "t"}), p.rng.IntN(4) == 0, 100e6*p.rng.Uint64N(2)
	switch p.rng.IntN(3) {
	case 0:
		set.Type = &typ
	case 1:
		set.AppendOnly = &appendOnly
	case 2:
		set.IdWindow = &window
	}
	return configure(key, func(c *wire.Configure) { c.Settings = set })
}
