package file

import (
	"cmp"
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// windowBytesMax bounds what the windows of all open streams may hold.
const windowBytesMax = 32 << 20

// pointDeletesMax is up to how many rows are deleted one by one: a range
// tombstone costs every later reader more than so many of the others.
const pointDeletesMax = 16

// stateOf and fillRow turn a stream's row into its queue's state and back.
func stateOf(r *wire.StreamRow) stream.State {
	return stream.State{
		NextSeq:  gearsfs.Seq(r.NextSeq),
		Head:     gearsfs.Place{Pos: gearsfs.Pos(r.HeadPos), Seq: gearsfs.Seq(r.HeadSeq)},
		Cursor:   gearsfs.Place{Pos: gearsfs.Pos(r.CursorPos), Seq: gearsfs.Seq(r.CursorSeq)},
		Tail:     gearsfs.Pos(r.TailPos),
		Ready:    r.Ready,
		Leased:   r.Leased,
		Returned: r.Returned,
		Bytes:    r.Bytes,
		Version:  r.Version,
		Sealed:   r.Sealed,
		Blocks:   r.Blocks,
		Limits:   gearsfs.Limits{Records: r.LimitRecords, Bytes: r.LimitBytes},
		Cleaned:  gearsfs.Place{Pos: gearsfs.Pos(r.CleanedPos), Seq: gearsfs.Seq(r.CleanedSeq)},
		Dead:     r.Dead,

		Type:       r.Type,
		AppendOnly: r.AppendOnly,
		IDWindow:   r.IdWindow,
		IDs:        r.Ids,
		NextID:     r.NextId,

		Delayed:      r.Delayed,
		DelayedAhead: r.DelayedAhead,
		Discarded:    r.Discarded,
		Full:         gearsfs.Full(r.Full),
		Tries:        r.Tries,
		Age:          r.Age,
		AgeDue:       r.AgeDue,
		IDsDue:       r.IdsDue,
		Memory:       r.Memory,

		Lost:       lostOf(r.Lost),
		LostBefore: gearsfs.Seq(r.LostBefore),
	}
}

func lostOf(rows []*wire.LostRun) []gearsfs.LostRun {
	if len(rows) == 0 {
		return nil
	}
	runs := make([]gearsfs.LostRun, len(rows))
	for i, r := range rows {
		runs[i] = gearsfs.LostRun{First: gearsfs.Seq(r.First), Last: gearsfs.Seq(r.Last), Fate: gearsfs.Fate(r.Fate)}
	}
	return runs
}

func fillRow(r *wire.StreamRow, s *stream.State) {
	r.NextSeq = uint64(s.NextSeq)
	r.HeadPos, r.HeadSeq = uint64(s.Head.Pos), uint64(s.Head.Seq)
	r.CursorPos, r.CursorSeq = uint64(s.Cursor.Pos), uint64(s.Cursor.Seq)
	r.TailPos = uint64(s.Tail)
	r.Ready, r.Leased, r.Returned = s.Ready, s.Leased, s.Returned
	r.Bytes, r.Version = s.Bytes, s.Version
	r.Sealed, r.Blocks = s.Sealed, s.Blocks
	r.LimitRecords, r.LimitBytes = s.Limits.Records, s.Limits.Bytes
	r.CleanedPos, r.CleanedSeq = uint64(s.Cleaned.Pos), uint64(s.Cleaned.Seq)
	r.Dead = s.Dead
	r.Type, r.AppendOnly = s.Type, s.AppendOnly
	r.IdWindow, r.Ids, r.NextId = s.IDWindow, s.IDs, s.NextID
	r.Delayed, r.DelayedAhead, r.Discarded = s.Delayed, s.DelayedAhead, s.Discarded
	r.Full, r.Tries, r.Age, r.AgeDue, r.Memory = uint32(s.Full), s.Tries, s.Age, s.AgeDue, s.Memory
	r.IdsDue = s.IDsDue
	r.Lost, r.LostBefore = r.Lost[:0], uint64(s.LostBefore)
	for _, run := range s.Lost {
		r.Lost = append(r.Lost, &wire.LostRun{First: uint64(run.First), Last: uint64(run.Last), Fate: uint32(run.Fate)})
	}
}

// streamRows are the rows of one open stream in the Machine's store.
type streamRows struct {
	m   *Machine
	s   *openStream
	ino gearsfs.Ino
	key gearsfs.Key
}

var _ stream.Records = (*streamRows)(nil)

func (m *Machine) rowsOf(s *openStream) *streamRows {
	return &streamRows{m: m, s: s, ino: s.node.ino, key: s.key}
}

// recordKey makes the key of a record in the first scratch buffer.
func (r *streamRows) recordKey(at gearsfs.Place) []byte {
	r.m.scratch.key = persist.AppendRecordKey(r.m.scratch.key[:0], r.ino, r.key, at)
	return r.m.scratch.key
}

// recordRange makes the keys of a range of records in both scratch buffers.
func (r *streamRows) recordRange(from, to gearsfs.Place) (lo, hi []byte) {
	r.m.scratch.key2 = persist.AppendRecordKey(r.m.scratch.key2[:0], r.ino, r.key, to)
	return r.recordKey(from), r.m.scratch.key2
}

func (r *streamRows) outKey(at gearsfs.Place) []byte {
	r.m.scratch.key = persist.AppendOutKey(r.m.scratch.key[:0], r.ino, r.key, at)
	return r.m.scratch.key
}

// Set implements stream.Rows.
func (r *streamRows) Set(at gearsfs.Place, rec *stream.Record) {
	row := &r.m.scratch.record
	row.Data, row.Type, row.Time, row.Block = rec.Data, rec.Type, rec.Time, rec.Block
	if len(rec.Extents) > 0 {
		row.Extents = ExtentsToWire(rec.Extents)
		r.s.extents++
	}
	r.m.set(r.recordKey(at), row)
	row.Data, row.Extents = nil, nil
}

// Replace implements stream.Rows.
func (r *streamRows) Replace(at gearsfs.Place, was []gearsfs.Extent, rec *stream.Record) {
	if len(was) > 0 {
		r.s.extents--
		if err := r.m.changeRefs(was, rec.Extents, false); err != nil {
			r.m.refuse(err)
		}
	}
	r.Set(at, rec)
}

// disown leaves of the row of a record that was moved only that there was one:
// its extents are another row's.
func (r *streamRows) disown(at gearsfs.Place, rec *stream.Record) {
	if len(rec.Extents) > 0 {
		r.s.extents--
		r.Set(at, &stream.Record{Type: rec.Type, Time: rec.Time})
	}
}

// Get implements stream.Rows.
func (r *streamRows) Get(at gearsfs.Place) (stream.Record, error) {
	rec, ok, err := r.find(at)
	if err == nil && !ok {
		err = gearsfs.ErrDamaged.Because("inode %d, stream %q: the row of the record at %v is missing", r.ino, r.key, at)
	}
	return rec, err
}

// Has implements stream.Rows.
func (r *streamRows) Has(at gearsfs.Place) (bool, error) {
	_, ok, err := r.m.store.Get(r.recordKey(at), nil)
	return ok, err
}

// find is Get of a row that may be missing.
func (r *streamRows) find(at gearsfs.Place) (rec stream.Record, ok bool, err error) {
	value, ok, err := r.m.store.Get(r.recordKey(at), nil)
	if err != nil || !ok {
		return rec, false, err
	}
	var row wire.RecordRow
	if err := row.UnmarshalVTUnsafe(value); err != nil {
		return rec, false, damaged("record", err)
	}
	rec, err = soundRecord(&row)
	return rec, err == nil, err
}

// recordOf returns a row's record, which shares its bytes.
func recordOf(row *wire.RecordRow) stream.Record {
	return stream.Record{Data: row.Data, Type: row.Type, Time: row.Time, Block: row.Block, Extents: ExtentsOf(row.Extents)}
}

// soundRecord is recordOf a row whose extents can be cut.
func soundRecord(row *wire.RecordRow) (rec stream.Record, err error) {
	rec = recordOf(row)
	left := uint64(gearsfs.RecordBytesMax)
	for i := range rec.Extents {
		e := &rec.Extents[i]
		if !stream.Zeros(e) {
			err = e.Check()
		}
		if err == nil && (e.Length == 0 || e.Length > left) {
			err = gearsfs.ErrTooBig
		}
		if err != nil {
			return rec, damaged("record", err)
		}
		left -= e.Length
	}
	return rec, nil
}

// Scan implements stream.Rows.
func (r *streamRows) Scan(from, to gearsfs.Place, yield func(at gearsfs.Place, rec *stream.Record) bool) error {
	lo, hi := r.recordRange(from, to)
	return scanRecords(r.m.store, lo, hi, yield)
}

// scanRecords calls yield with the records in [lo, hi) until it returns false.
func scanRecords(r Reader, lo, hi []byte, yield func(at gearsfs.Place, rec *stream.Record) bool) error {
	var row wire.RecordRow
	return scan(r, lo, hi, func(key, value []byte) error {
		at, err := persist.ParsePlace(key)
		if err == nil {
			row.Reset()
			err = row.UnmarshalVTUnsafe(value)
		}
		if err != nil {
			return damaged("record", err)
		}
		rec, err := soundRecord(&row)
		if err != nil {
			return err
		}
		if !yield(at, &rec) {
			return errStop
		}
		return nil
	})
}

// Before implements stream.Rows.
func (r *streamRows) Before(at gearsfs.Place) (found gearsfs.Place, ok bool, err error) {
	lo, hi := r.recordRange(gearsfs.Place{}, at)
	it, err := r.m.store.Scan(lo, hi)
	if err != nil {
		return found, false, err
	}
	if ok = it.Last(); ok {
		found, err = persist.ParsePlace(it.Key())
	}
	if closeErr := it.Close(); err == nil {
		err = closeErr
	}
	return found, ok && err == nil, err
}

// Delete implements stream.Rows. Rows that an answer refers to are copied into
// the answer first.
func (r *streamRows) Delete(from, to gearsfs.Place) error {
	if !from.Less(to) {
		return nil
	}
	if err := r.m.keepPinned(r, from, to); err != nil {
		return err
	}
	if err := r.letGo(from, to); err != nil {
		return err
	}
	if to == (gearsfs.Place{Pos: from.Pos, Seq: from.Seq + 1}) {
		r.m.store.Delete(r.recordKey(from))
		return nil
	}
	lo, hi := r.recordRange(from, to)
	return r.m.deleteRows(lo, hi)
}

// Discard implements stream.Rows. Rows that an answer refers to stay.
func (r *streamRows) Discard(from, to gearsfs.Place) {
	for _, p := range r.m.sessions.pins.pinned(streamKey{r.ino, r.key}, from, to) {
		r.discard(from, p.from)
		from = p.to
	}
	r.discard(from, to)
}

func (r *streamRows) discard(from, to gearsfs.Place) {
	if !from.Less(to) {
		return
	}
	if err := r.letGo(from, to); err != nil {
		r.m.refuse(err)
		return
	}
	switch {
	case to == gearsfs.Place{Pos: from.Pos, Seq: from.Seq + 1}:
		r.m.store.Delete(r.recordKey(from))
	default:
		r.m.store.DeleteRange(r.recordRange(from, to))
	}
}

// letGo lets go of what the rows in [from, to), which are about to be deleted,
// refer to in the block store.
func (r *streamRows) letGo(from, to gearsfs.Place) error {
	if r.s.extents == 0 {
		return nil
	}
	var all, runs []pageRun // of each row: two may refer to the same page
	lo, hi := r.recordRange(from, to)
	err := scanRecords(r.m.store, lo, hi, func(_ gearsfs.Place, rec *stream.Record) bool {
		if len(rec.Extents) > 0 {
			r.s.extents--
			r.m.dirtyStream(r.s)
			runs = tidyRuns(appendRuns(runs[:0], rec.Extents))
			all = append(all, runs...)
		}
		return true
	})
	for i := 0; i < len(all) && err == nil; i++ {
		err = r.m.dropRefs(all[i])
	}
	return err
}

// handOver deletes the row of a record that an answer has got, and what it refers
// to in the block store with it. Those in [from, to) the caller deletes.
func (r *streamRows) handOver(kept *wire.KeptRecord, from, to gearsfs.Place) {
	at := gearsfs.Place{Pos: gearsfs.Pos(kept.Pos), Seq: gearsfs.Seq(kept.Seq)}
	if len(kept.Row.Extents) > 0 {
		r.s.extents--
		r.m.dirtyStream(r.s)
	} else if !at.Less(from) && at.Less(to) {
		return
	}
	r.m.store.Delete(r.recordKey(at))
}

// AddOut implements stream.Outs, and keeps the timers and the index of leases, as
// SetOut and DeleteOut do.
func (r *streamRows) AddOut(at gearsfs.Place, out stream.Out) {
	r.m.add(r.outKey(at), r.outRow(out))
	r.m.setTimer(r.timer(out.Deadline, at))
	if out.Leased {
		r.m.sessions.addLease(out.Holder, leaseKey{r.ino, r.key, at})
	}
}

// outRow fills in the scratch row of a mark.
func (r *streamRows) outRow(out stream.Out) *wire.OutRow {
	row := &r.m.scratch.out
	row.Leased, row.SessionMinted, row.SessionSalt = out.Leased, uint64(out.Holder.Minted), out.Holder.Salt
	row.Fence, row.Deliveries, row.Bytes = out.Fence, out.Deliveries, out.Bytes
	row.Tries, row.Deadline, row.Jumped = out.Tries, out.Deadline, out.Jumped
	return row
}

// SetOut implements stream.Outs.
func (r *streamRows) SetOut(at gearsfs.Place, was, out stream.Out) {
	r.m.set(r.outKey(at), r.outRow(out))
	if was.Deadline != out.Deadline {
		r.m.removeTimer(r.timer(was.Deadline, at))
		r.m.setTimer(r.timer(out.Deadline, at))
	}
	if was.Leased && (!out.Leased || was.Fence != out.Fence) {
		r.m.touch(r.ino, r.key).Ended = true
	}
	if was.Leased && was.Holder != out.Holder {
		r.m.sessions.removeLease(was.Holder, leaseKey{r.ino, r.key, at})
	}
	if out.Leased {
		r.m.sessions.addLease(out.Holder, leaseKey{r.ino, r.key, at})
	}
}

// DeleteOut implements stream.Outs.
func (r *streamRows) DeleteOut(at gearsfs.Place, was stream.Out) {
	r.m.store.Delete(r.outKey(at))
	r.m.removeTimer(r.timer(was.Deadline, at))
	if was.Leased {
		r.m.touch(r.ino, r.key).Ended = true
		r.m.sessions.removeLease(was.Holder, leaseKey{r.ino, r.key, at})
	}
}

// ScanOuts implements stream.Outs.
func (r *streamRows) ScanOuts(yield func(at gearsfs.Place, out stream.Out)) error {
	lo, hi := persist.StreamRange(persist.TableOut, r.ino, r.key)
	return scanOuts(r.m.store, lo, hi, func(_ []byte, at gearsfs.Place, out stream.Out) error {
		yield(at, out)
		return nil
	})
}

// scanOuts calls visit with the out marks in [lo, hi), as scan does.
func scanOuts(r Reader, lo, hi []byte, visit func(key []byte, at gearsfs.Place, out stream.Out) error) error {
	return scan(r, lo, hi, func(key, value []byte) error {
		at, err := persist.ParsePlace(key)
		if err != nil {
			return err
		}
		out, err := parseOut(value)
		if err != nil {
			return err
		}
		return visit(key, at, out)
	})
}

func parseOut(value []byte) (stream.Out, error) {
	var row wire.OutRow
	if err := row.UnmarshalVT(value); err != nil {
		return stream.Out{}, damaged("out", err)
	}
	return stream.Out{
		Leased:     row.Leased,
		Holder:     gearsfs.SessionID{Minted: int64(row.SessionMinted), Salt: row.SessionSalt},
		Fence:      row.Fence,
		Deliveries: row.Deliveries,
		Tries:      row.Tries,
		Bytes:      row.Bytes,
		Deadline:   row.Deadline,
		Jumped:     row.Jumped,
	}, nil
}

// deleteRows deletes the rows in [lo, hi): one by one where they are few.
func (m *Machine) deleteRows(lo, hi []byte) error {
	var keys [][]byte
	err := scan(m.store, lo, hi, func(key, _ []byte) error {
		keys = append(keys, slices.Clone(key))
		if len(keys) > pointDeletesMax {
			return errStop
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(keys) > pointDeletesMax {
		m.store.DeleteRange(lo, hi)
		return nil
	}
	for _, k := range keys {
		m.store.Delete(k)
	}
	return nil
}

// dropStream deletes a stream with all its rows: leases on its records end.
func (m *Machine) dropStream(s *openStream) error {
	head := s.queue.State().Head
	if err := s.queue.Clear(); err != nil {
		return err
	}
	s.queue.DropWindow()
	// In front of head are rows not cleaned yet, or kept for answers.
	if err := m.rowsOf(s).Delete(gearsfs.Place{}, head); err != nil {
		return err
	}
	if err := m.dropIDs(s); err != nil {
		return err
	}
	m.setAgeTimer(s, 0)
	m.setIDTimer(s, 0)
	m.store.Delete(persist.StreamKey(s.node.ino, s.key))
	m.count(s, 0)
	s.gone = true
	m.close(s)
	s.node.row.Streams--
	m.dirtyNode(s.node)
	return nil
}

// dropStreams deletes the streams of a file, as dropStream does: as many as one
// entry may, and says whether there are more.
func (m *Machine) dropStreams(n *node) (more bool, err error) {
	for left := m.shrinkMax; n.row.Streams > 0; {
		if left == 0 {
			return true, nil
		}
		s, err := m.firstStream(n)
		if err != nil {
			return false, err
		}
		if more, err := m.dropEnd(s, left); more || err != nil {
			return more, err
		}
		left -= min(left, 1+s.extents)
		if err := m.dropStream(s); err != nil {
			return false, err
		}
	}
	return false, nil
}

// firstStream returns n's stream of the least key. There must be one.
func (m *Machine) firstStream(n *node) (*openStream, error) {
	if n.row.Streams == 1 { // mostly of bytes, which need not be looked for
		if s, err := m.stream(n, gearsfs.DataKey); s != nil || err != nil {
			return s, err
		}
	}
	key, err := m.firstKey(n)
	if err != nil {
		return nil, err
	}
	return m.stream(n, key)
}

// firstKey returns the least key of n's streams, of which there must be one.
func (m *Machine) firstKey(n *node) (gearsfs.Key, error) {
	var first gearsfs.Key
	if n.streams != nil { // one that is new has no row yet
		first = n.streams.Left().Key
		if uint64(n.streams.Size()) == n.row.Streams {
			return first, nil
		}
	}
	lo, hi := persist.FileRange(persist.TableStream, n.ino)
	err := scan(m.store, lo, hi, func(k, _ []byte) error {
		_, key, err := persist.ParseStreamKey(k)
		if err == nil && (first == "" || key < first) {
			first = key
		}
		return cmp.Or(err, errStop)
	})
	if err == nil && first == "" {
		err = gearsfs.ErrDamaged.Because("inode %d counts %d streams and has none", n.ino, n.row.Streams)
	}
	return first, err
}
