package memory

import (
	"cmp"
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// doLocked does what an operation asks for, or nothing and says why.
func (m *Machine) doLocked(r *Request, at Place) (*wire.Answer, error) {
	if err := m.state.MayWait(at.Ino, false, true, r.Caller); err != nil {
		return nil, err
	}
	switch op := r.Command.Op.(type) {
	case *wire.Command_Put:
		return m.putLocked(at, op.Put)
	case *wire.Command_Update:
		return m.updateLocked(at, op.Update)
	}
	return nil, gearsfs.ErrUnknownOp
}

func (m *Machine) putLocked(at Place, p *wire.Put) (*wire.Answer, error) {
	if err := file.CheckRecords(p.Records); err != nil {
		return nil, err
	}
	s := m.currentLocked(at)
	fresh, known, err := m.freshLocked(s, p.Records)
	if err != nil {
		return nil, err
	}
	answer := &wire.Answer{Ino: uint64(at.Ino)}
	if len(p.Records) == 1 {
		answer.FirstSeq, answer.LastSeq = known, known
	}
	if len(fresh) == 0 {
		return answer, nil
	}
	now := m.node.Now()
	until := p.At
	if p.Delay != 0 {
		until = max(until, now+p.Delay)
	}
	if err := file.CheckAppend(s.State(), fresh, until > now); err != nil {
		return nil, err
	}
	records, bytes := uint64(len(fresh)), uint64(0)
	for _, r := range fresh {
		bytes += uint64(len(r.Data))
	}
	if s.State().Full == gearsfs.FullDropOldest {
		if err := s.DropOldest(records, bytes); err != nil {
			return nil, err
		}
	} else if !s.State().Fits(records, bytes) {
		return nil, gearsfs.ErrFull
	}
	for i, r := range fresh {
		var seq gearsfs.Seq
		if until > now {
			seq = s.AppendDelayed(r.Data, r.Type, now, until).Seq
		} else {
			seq = s.Append(r.Data, r.Type, now).Seq
		}
		if r.Id != "" {
			s.ids.remember(r.Id, uint64(seq), now)
		}
		answer.LastSeq = uint64(seq)
		if i == 0 {
			answer.FirstSeq = answer.LastSeq
		}
	}
	s.ids.forget(now, s.idWindow())
	m.touchLocked(at)
	return answer, nil
}

// freshLocked returns those of the records of a put whose ids their stream does
// not know, and the seq of the last one that it knows.
func (m *Machine) freshLocked(s *queue, records []*wire.NewRecord) (fresh []*wire.NewRecord, known uint64, err error) {
	var seen map[string]struct{}
	for _, r := range records {
		if r.Id != "" {
			seq, ok, err := m.knownLocked(s, r.Id)
			if err != nil {
				return nil, 0, err
			}
			if ok {
				known = seq
				continue
			}
			if _, twice := seen[r.Id]; twice {
				continue
			}
			if seen == nil {
				seen = make(map[string]struct{})
			}
			seen[r.Id] = struct{}{}
		}
		fresh = append(fresh, r)
	}
	return fresh, known, nil
}

// knownLocked returns the seq under which an id was put within the stream's window:
// here, or on disk before the stream came into memory.
func (m *Machine) knownLocked(s *queue, id string) (seq uint64, known bool, err error) {
	if seq, known = s.ids.known(id, m.node.Now(), s.idWindow()); known || s.State().IDs == 0 {
		return seq, known, nil
	}
	return m.state.KnownID(s.at.Ino, s.at.Key, id)
}

// LacksID is file.Machine.LacksID of a stream in memory.
func (m *Machine) LacksID(at Place, records []*wire.NewRecord) (lacks string, all bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lacksIDLocked(at, records)
}

func (m *Machine) lacksIDLocked(at Place, records []*wire.NewRecord) (lacks string, all bool) {
	if len(records) == 0 || slices.ContainsFunc(records, func(r *wire.NewRecord) bool { return r.Id == "" }) {
		return "", false
	}
	s := m.streamLocked(at)
	for _, r := range records {
		if _, ok, err := m.knownLocked(s, r.Id); !ok || err != nil {
			return r.Id, true
		}
	}
	return "", true
}

// addsNothingLocked says whether a put, which waits behind others, changes nothing.
func (m *Machine) addsNothingLocked(r *Request) bool {
	p := r.Command.GetPut()
	lacks, all := m.lacksIDLocked(Place{r.Ino, r.Keys[0]}, p.Records)
	return all && lacks == "" && !p.Seal
}

func shown(at Place, taken []stream.Taken) []*wire.TakenRecord {
	out := make([]*wire.TakenRecord, len(taken))
	for i, t := range taken {
		out[i] = &wire.TakenRecord{
			Ino: uint64(at.Ino), Key: string(at.Key), Pos: uint64(t.Place.Pos), Seq: uint64(t.Place.Seq),
			Data: slices.Clone(t.Record.Data), Type: t.Record.Type, Time: t.Record.Time,
			Deliveries: t.Deliveries, Fence: t.Fence, Deadline: t.Deadline,
		}
	}
	return out
}

func (m *Machine) updateLocked(at Place, u *wire.Update) (*wire.Answer, error) {
	if u.Record == nil {
		return nil, gearsfs.ErrInvalid.Because("an update has one record")
	}
	record := []*wire.NewRecord{u.Record}
	if err := file.CheckRecords(record); err != nil {
		return nil, err
	}
	s := m.currentLocked(at)
	fresh, known, err := m.freshLocked(s, record)
	switch {
	case err != nil:
		return nil, err
	case len(fresh) == 0:
		return &wire.Answer{Ino: uint64(at.Ino), FirstSeq: known, LastSeq: known}, nil
	}
	state := *s.State()
	state.Limits = gearsfs.Limits{} // an update fits always
	if err := file.CheckAppend(&state, record, false); err != nil {
		return nil, err
	}
	switch newest := uint64(s.newest()); {
	case state.AppendOnly:
		return nil, gearsfs.ErrPermission.Because("the stream is append-only")
	case u.IfSeq != nil && *u.IfSeq != newest:
		return nil, gearsfs.ErrUnmet.Because("the newest seq is %d, not %d", newest, *u.IfSeq)
	}
	if err := s.Clear(); err != nil {
		return nil, err
	}
	now := m.node.Now()
	seq := uint64(s.Append(u.Record.Data, u.Record.Type, now).Seq)
	if u.Record.Id != "" {
		s.ids.remember(u.Record.Id, seq, now)
	}
	m.touchLocked(at)
	return &wire.Answer{Ino: uint64(at.Ino), FirstSeq: seq, LastSeq: seq}, nil
}

// receiptAt is the stream and the place of a receipt.
func receiptAt(r *wire.Receipt) (Place, gearsfs.Place) {
	return Place{gearsfs.Ino(r.Ino), gearsfs.Key(r.Key)}, gearsfs.Place{Pos: gearsfs.Pos(r.Pos), Seq: gearsfs.Seq(r.Seq)}
}

// checkSettleLocked checks whether a session may settle leases, all of them.
func (m *Machine) checkSettleLocked(r *Request, receipts []*wire.Receipt) error {
	seen := make(map[uint64]bool, len(receipts))
	for _, receipt := range receipts {
		at, record := receiptAt(receipt)
		out, ok := m.currentLocked(at).Out(record)
		if !ok || !out.Leased || out.Fence != receipt.Fence || seen[receipt.Fence] || !out.Holder.IsZero() && out.Holder != r.Session {
			return gearsfs.ErrGone
		}
		seen[receipt.Fence] = true
		if out.Holder.IsZero() {
			if err := m.state.MayWait(at.Ino, true, true, r.Caller); err != nil {
				return err
			}
		}
	}
	return nil
}

// settleLocked ends or extends leases that may be settled.
func (m *Machine) settleLocked(s *wire.Settle, receipts []*wire.Receipt) error {
	now := m.node.Now()
	for _, r := range receipts {
		at, record := receiptAt(r)
		q := m.streamLocked(at)
		switch out, _ := q.Out(record); {
		case s.Return:
			m.comeBackLocked(q, record, s.Tries, s.Delay)
		case s.Extend != 0 && out.Deadline != 0:
			q.Extend(record, now+s.Extend, 0)
		case s.Extend == 0:
			if err := q.Ack(record); err != nil {
				return err
			}
			q.Clean()
		}
		m.touchLocked(at)
	}
	return nil
}

// comeBackLocked ends a lease: the record is ready again, or after a delay; or it
// goes to the dead, where it was handed out too often.
func (m *Machine) comeBackLocked(s *queue, record gearsfs.Place, tries uint32, delay uint64) {
	out, _ := s.Out(record)
	tries = cmp.Or(tries, out.Tries, s.State().Tries)
	dead := Place{s.at.Ino, s.at.Key + ".dead"}
	if tries != 0 && out.Deliveries >= tries && dead.Key.Check() == nil && m.buryLocked(s, record, dead) {
		return
	}
	if delay != 0 {
		s.Delay(record, m.node.Now()+delay)
		return
	}
	s.Return(record)
}

// buryLocked moves a record to a stream of the dead, which is in memory, too: it
// is made where it is missing. Where there is one on disk it reports false.
func (m *Machine) buryLocked(s *queue, record gearsfs.Place, dead Place) bool {
	if m.leaving[dead] != nil {
		return false
	}
	if m.state.InMemory(dead.Ino, dead.Key) {
		m.moveLocked(s, record, dead)
		return true
	}
	configure := m.node.Configure()
	if st := m.state.StreamState(dead.Ino, dead.Key); configure == nil || st.State().NextSeq != 0 {
		return false
	}
	fence := m.nextFence()
	m.fence++
	s.Relet(record, stream.Grant{Fence: fence}) // nobody's, until there is a stream for it
	yes := true
	c := &wire.Configure{
		Target: &wire.Target{Ino: uint64(dead.Ino)}, Key: string(dead.Key), Settings: &wire.Settings{Memory: &yes},
	}
	m.Push(func() {
		configure(c, func() {
			m.Push(func() {
				m.mu.Lock()
				if out, ok := s.Out(record); ok && out.Leased && out.Fence == fence && m.streams[s.at] == s {
					if m.leaving[dead] == nil && m.state.InMemory(dead.Ino, dead.Key) {
						m.moveLocked(s, record, dead)
					} else {
						s.Return(record)
					}
					m.touchLocked(s.at)
				}
				m.mu.Unlock()
				m.Wake()
			})
		})
	})
	return true
}

// moveLocked moves a leased record to another stream in memory.
func (m *Machine) moveLocked(s *queue, record gearsfs.Place, to Place) {
	row, err := s.Row(record)
	if err == nil {
		s.Lose(record.Seq, record.Seq, gearsfs.FateDead)
		err = s.Ack(record)
	}
	if err != nil {
		panic(err) // rows in memory are read without errors
	}
	m.streamLocked(to).Append(row.Data, row.Type, m.node.Now())
	m.touchLocked(to)
}

// Peek shows records of a stream that is in memory.
func (m *Machine) Peek(at Place, what *wire.Peek, caller gearsfs.Caller) ([]*wire.TakenRecord, error) {
	if err := m.state.MayWait(at.Ino, true, false, caller); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.streamLocked(at)
	s := q.State()
	var taken []stream.Taken
	var err error
	switch limit := int(max(1, what.Max)); {
	case what.Last:
		for err == nil && !s.Drained() {
			var more []stream.Taken
			after := gearsfs.Seq(0)
			if len(taken) > 0 {
				after = taken[len(taken)-1].Place.Seq
			}
			if more, err = q.Newer(nil, after, gearsfs.BatchRecordsMax, gearsfs.BatchBytesMax); len(more) == 0 {
				break
			}
			taken = more[len(more)-1:]
		}
	case what.Follow:
		taken, err = q.Newer(nil, gearsfs.Seq(what.After), limit, gearsfs.BatchBytesMax)
	default:
		taken, err = q.Peek(nil, limit, gearsfs.BatchBytesMax)
	}
	switch {
	case err != nil:
		return nil, err
	case len(taken) == 0 && s.Sealed && (what.Follow || s.Drained()):
		return nil, gearsfs.ErrEnd
	case len(taken) == 0:
		return nil, gearsfs.ErrEmpty
	}
	return shown(at, taken), nil
}

// Describe fills in what the state does not know of a stream that is in memory.
func (m *Machine) Describe(ino gearsfs.Ino, info *gearsfs.StreamInfo) {
	if !info.Settings.Memory || m.count.Load() == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.streams[Place{ino, info.Key}]
	if q == nil {
		return
	}
	s := q.State()
	info.Records, info.Leased, info.Delayed, info.Bytes = s.Ready, s.Leased, s.Delayed, s.Bytes
	info.Head, info.Tail, info.Version, info.Discarded = s.Head, s.End(), s.Version, s.Discarded
	info.Lost, info.LostBefore = s.Lost, s.LostBefore
}
