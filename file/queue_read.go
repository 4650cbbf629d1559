package file

import (
	"cmp"
	"math"
	"slices"
	"sort"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// StreamState is what waiting operations need to know of a stream. That of one
// that does not exist is the zero value.
type StreamState struct {
	Ready   uint64 // records that can be taken
	Version uint64
	Sealed  bool
	Full    gearsfs.Full // what a put does that finds no room

	state stream.State
}

// Drained reports whether no record is left and none can come.
func (s *StreamState) Drained() bool { return s.Sealed && s.state.Drained() }

// Exists says whether there is a stream.
func (s *StreamState) Exists() bool { return s.state.NextSeq != 0 }

// StreamStateOf is what waiting operations need to know of a stream whose records
// are kept somewhere else.
func StreamStateOf(s stream.State) StreamState { return stateForWaiting(s) }

// State is all of it.
func (s *StreamState) State() stream.State { return s.state }

// Left counts the records that are there, leased and delayed ones too.
func (s *StreamState) Left() uint64 { return s.state.Ready + s.state.Leased + s.state.Delayed }

// Newest is the seq of the last record that was put, 0 where none was.
func (s *StreamState) Newest() gearsfs.Seq {
	if s.state.NextSeq == 0 {
		return 0 // there is no stream
	}
	return s.state.Newest()
}

// Fits reports whether n more records of together that many bytes find room in
// the stream.
func (s *StreamState) Fits(n, bytes uint64) bool {
	return s.Full == gearsfs.FullDropOldest || s.state.Fits(n, bytes)
}

// StreamState returns the state of a stream after the last applied entry. It
// checks no permission.
func (m *Machine) StreamState(ino gearsfs.Ino, key gearsfs.Key) StreamState {
	m.mu.RLock()
	s, ok := m.streams.get(streamKey{ino, key})
	if ok {
		state := *s.queue.State()
		m.mu.RUnlock()
		return stateForWaiting(state)
	}
	r := m.readLocked()
	m.mu.RUnlock()
	defer r.close()
	state, ok, err := r.streamState(ino, key)
	if err != nil || !ok { // what can't be read is not there to be waited for
		return StreamState{}
	}
	return stateForWaiting(state)
}

func stateForWaiting(s stream.State) StreamState {
	return StreamState{Ready: s.Ready, Version: s.Version, Sealed: s.Sealed, Full: s.Full, state: s}
}

// streamState returns the state of a stream; ok is false where it does not
// exist.
func (r *reading) streamState(ino gearsfs.Ino, key gearsfs.Key) (s stream.State, ok bool, err error) {
	if r.buf, ok, err = r.view.Get(persist.StreamKey(ino, key), r.buf[:0]); err != nil || !ok {
		return s, false, err
	}
	var row wire.StreamRow
	if err := row.UnmarshalVT(r.buf); err != nil {
		return s, false, damaged("stream", err)
	}
	return stateOf(&row), true, nil
}

// readableFile checks that an inode is a file whose streams a caller may read.
func (r *reading) readableFile(caller gearsfs.Caller, ino gearsfs.Ino) error {
	n, err := r.inode(ino)
	if err != nil {
		return err
	}
	if err := hasStreams(n.attr.Mode); err != nil {
		return err
	}
	if !n.guard().permits(caller, mayRead) {
		return gearsfs.ErrAccess
	}
	return nil
}

// MayWait returns why a caller can't wait at the streams of a file to read
// them, to write to them, or both: gearsfs.ErrStale, ErrRemoved where the file has
// no name left, ErrIsDir, ErrInvalid, ErrAccess.
func (m *Machine) MayWait(ino gearsfs.Ino, read, write bool, caller gearsfs.Caller) error {
	n, err := m.inode(ino)
	if err != nil {
		return err
	}
	if n.attr.Nlink == 0 {
		return gearsfs.ErrRemoved
	}
	if err := hasStreams(n.attr.Mode); err != nil {
		return err
	}
	var want uint32
	if read {
		want |= mayRead
	}
	if write {
		want |= mayWrite
	}
	if !n.guard().permits(caller, want) {
		return gearsfs.ErrAccess
	}
	return nil
}

// Stream describes one stream; a key that does not exist is described as an
// empty stream. Errors: gearsfs.ErrKey, ErrStale, ErrIsDir, ErrInvalid, ErrAccess.
func (m *Machine) Stream(ino gearsfs.Ino, key gearsfs.Key, caller gearsfs.Caller) (gearsfs.StreamInfo, error) {
	if err := key.Check(); err != nil {
		return gearsfs.StreamInfo{}, err
	}
	r := m.read()
	defer r.close()
	if err := r.readableFile(caller, ino); err != nil {
		return gearsfs.StreamInfo{}, err
	}
	state, ok, err := r.streamState(ino, key)
	if err != nil {
		return gearsfs.StreamInfo{}, err
	}
	if !ok {
		state = stream.NewState()
	}
	return streamInfo(key, &state), nil
}

func streamInfo(key gearsfs.Key, s *stream.State) gearsfs.StreamInfo {
	return gearsfs.StreamInfo{
		Key: key, Records: s.Ready, Leased: s.Leased, Bytes: s.Bytes, Head: s.Head, Tail: s.End(),
		Version: s.Version, Sealed: s.Sealed, Limits: s.Limits,
		Delayed: s.Delayed, Discarded: s.Discarded, Settings: settingsOf(s), Lost: s.Lost, LostBefore: s.LostBefore,
	}
}

// ListStreams describes up to limit streams of a file, in the order of their
// keys, beginning behind the key after. Errors as Stream.
func (m *Machine) ListStreams(ino gearsfs.Ino, after gearsfs.Key, limit int, caller gearsfs.Caller) ([]gearsfs.StreamInfo, error) {
	r := m.read()
	defer r.close()
	if err := r.readableFile(caller, ino); err != nil {
		return nil, err
	}
	lo, hi := persist.FileRange(persist.TableStream, ino)
	if after != "" {
		lo = append(persist.StreamKey(ino, after), 0)
	}
	var infos []gearsfs.StreamInfo
	err := scan(r.view, lo, hi, func(k, value []byte) error {
		if len(infos) >= limit {
			return errStop
		}
		_, key, err := persist.ParseStreamKey(k)
		var row wire.StreamRow
		if err == nil {
			err = row.UnmarshalVT(value)
		}
		if err != nil {
			return damaged("stream", err)
		}
		state := stateOf(&row)
		infos = append(infos, streamInfo(key, &state))
		return nil
	})
	return infos, err
}

// PeekWhat says which records Peek shows: those at the head that could be
// taken; with Follow those with a seq greater than After, leased and delayed ones
// too; with Last the newest.
type PeekWhat struct {
	Max    int
	Follow bool
	After  gearsfs.Seq
	Last   bool
}

// Peek shows up to Max records, of at most gearsfs.BatchBytesMax bytes but for
// the first, which belong to the caller. Errors: gearsfs.ErrEmpty, gearsfs.ErrEnd
// where none can come any more, and those of Stream.
func (m *Machine) Peek(ino gearsfs.Ino, key gearsfs.Key, what PeekWhat, caller gearsfs.Caller) ([]*wire.TakenRecord, error) {
	if err := key.Check(); err != nil {
		return nil, err
	}
	r := m.read()
	defer r.close()
	if err := r.readableFile(caller, ino); err != nil {
		return nil, err
	}
	state, ok, err := r.streamState(ino, key)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, gearsfs.ErrEmpty
	}
	p := peeking{r: r, ino: ino, key: key, state: &state, left: max(what.Max, 1), bytesLeft: gearsfs.BatchBytesMax}
	switch {
	case what.Last:
		err = p.last()
	case what.Follow:
		err = p.newerThan(what.After)
	default:
		err = p.ready()
	}
	switch {
	case err != nil:
		return nil, err
	case len(p.found) > 0:
		return p.found, nil
	case state.Sealed && (what.Follow || state.Drained()):
		return nil, gearsfs.ErrEnd
	}
	return nil, gearsfs.ErrEmpty
}

// peeking is one Peek.
type peeking struct {
	r         *reading
	ino       gearsfs.Ino
	key       gearsfs.Key
	state     *stream.State
	left      int
	bytesLeft int
	ahead     bool // records from the cursor on may be delayed: they are not shown
	found     []*wire.TakenRecord
}

// add shows a record; false where that was the last one that may be shown, or
// where it is one too many.
func (p *peeking) add(at gearsfs.Place, rec *stream.Record, deliveries uint32) bool {
	n := rec.Len()
	if len(p.found) > 0 && n > p.bytesLeft {
		return false
	}
	p.found = append(p.found, &wire.TakenRecord{
		Ino: uint64(p.ino), Key: string(p.key), Pos: uint64(at.Pos), Seq: uint64(at.Seq),
		Data: slices.Clone(rec.Data), Type: string([]byte(rec.Type)), Time: rec.Time, Deliveries: deliveries,
		Extents: ExtentsToWire(stream.CloneExtents(rec.Extents)),
	})
	p.left--
	p.bytesLeft -= n
	return p.left > 0
}

// scan adds the records from a place on that live.
func (p *peeking) scan(from gearsfs.Place) error {
	outs := p.state.Leased + p.state.Returned + p.state.Delayed
	if outs == 0 && from.Less(p.state.Cursor) {
		from = p.state.Cursor
	}
	lo, hi := persist.RecordRange(p.ino, p.key, from, p.state.End())
	var failed error
	err := scanRecords(p.r.view, lo, hi, func(at gearsfs.Place, rec *stream.Record) bool {
		var deliveries uint32
		if at.Less(p.state.Cursor) {
			out, ok, err := p.out(at)
			if failed = err; err != nil {
				return false
			}
			if !ok {
				return true
			}
			deliveries = out.Deliveries
		} else if p.ahead {
			_, waits, err := p.out(at)
			if failed = err; err != nil {
				return false
			}
			if waits {
				return true
			}
		}
		return p.add(at, rec, deliveries)
	})
	return cmp.Or(failed, err)
}

func (p *peeking) out(at gearsfs.Place) (out stream.Out, ok bool, err error) {
	if p.r.buf, ok, err = p.r.view.Get(persist.OutKey(p.ino, p.key, at), p.r.buf[:0]); err == nil && ok {
		out, err = parseOut(p.r.buf)
	}
	return out, ok, err
}

// ready adds what a take would get.
func (p *peeking) ready() error {
	if p.state.Returned > 0 {
		lo, hi := persist.StreamRange(persist.TableOut, p.ino, p.key)
		more := true
		err := scanOuts(p.r.view, lo, hi, func(_ []byte, at gearsfs.Place, out stream.Out) error {
			if out.Leased || out.Delayed() {
				return nil
			}
			rec, err := p.record(at)
			if err != nil {
				return err
			}
			if more = p.add(at, &rec, out.Deliveries); !more {
				return errStop
			}
			return nil
		})
		if err != nil || !more {
			return err
		}
	}
	if p.state.Ready == p.state.Returned {
		return nil
	}
	p.ahead = p.state.DelayedAhead > 0
	return p.scan(p.state.Cursor)
}

func (p *peeking) record(at gearsfs.Place) (stream.Record, error) {
	value, ok, err := p.r.view.Get(persist.RecordKey(p.ino, p.key, at), nil)
	if err != nil {
		return stream.Record{}, err
	}
	var row wire.RecordRow
	if err = row.UnmarshalVTUnsafe(value); err != nil || !ok {
		return stream.Record{}, gearsfs.ErrDamaged.Because("inode %d, stream %q: the record at %v can't be read", p.ino, p.key, at)
	}
	return soundRecord(&row)
}

// last adds the newest record.
func (p *peeking) last() error {
	if p.state.Drained() {
		return nil
	}
	table := persist.TableRecord
	if p.state.Ready == p.state.Returned { // all that is left is out
		table = persist.TableOut
	}
	it, err := p.r.view.Scan(persist.StreamRange(table, p.ino, p.key))
	if err != nil {
		return err
	}
	var at gearsfs.Place
	ok := it.Last()
	if ok {
		at, err = persist.ParsePlace(it.Key())
	}
	if closeErr := it.Close(); err == nil {
		err = closeErr
	}
	if err != nil || !ok {
		return err
	}
	rec, err := p.record(at)
	if err != nil {
		return err
	}
	out, _, err := p.out(at)
	p.add(at, &rec, out.Deliveries)
	return err
}

// newerThan adds the records with a greater seq than after, the lowest seq
// first.
func (p *peeking) newerThan(after gearsfs.Seq) error {
	if after >= p.state.NextSeq-1 || p.state.Drained() {
		return nil
	}
	if p.state.Blocks {
		return p.newerBlocks(after)
	}
	from := p.state.Head
	if after >= from.Seq {
		var err error
		if from, err = p.firstNewer(after); err != nil {
			return err
		}
	}
	return p.scan(from)
}

// newerBlocks is newerThan for a stream in which seqs don't rise with places:
// it looks at every record's key.
func (p *peeking) newerBlocks(after gearsfs.Seq) error {
	lo, hi := persist.RecordRange(p.ino, p.key, p.state.Head, p.state.End())
	var newer []gearsfs.Place
	err := scan(p.r.view, lo, hi, func(key, _ []byte) error {
		at, err := persist.ParsePlace(key)
		if err == nil && at.Seq > after {
			newer = append(newer, at)
		}
		return err
	})
	if err != nil {
		return err
	}
	slices.SortFunc(newer, func(a, b gearsfs.Place) int { return cmp.Compare(a.Seq, b.Seq) })
	for _, at := range newer {
		var deliveries uint32
		if at.Less(p.state.Cursor) {
			out, ok, err := p.out(at)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			deliveries = out.Deliveries
		}
		rec, err := p.record(at)
		if err != nil || !p.add(at, &rec, deliveries) {
			return err
		}
	}
	return nil
}

// followStepsMax is how far behind the tail a follower is looked for before
// all of the stream is searched.
const followStepsMax = 32

// firstNewer finds the place of the first row with a greater seq than after, the
// end where there is none, in a stream whose seqs rise with its places.
func (p *peeking) firstNewer(after gearsfs.Seq) (gearsfs.Place, error) {
	it, err := p.r.view.Scan(persist.RecordRange(p.ino, p.key, gearsfs.Place{}, p.state.End()))
	if err != nil {
		return gearsfs.Place{}, err
	}
	found, near, err := stepBack(it, after, p.state.End())
	if err == nil && !near {
		found, err = p.search(it, after)
	}
	if closeErr := it.Close(); err == nil {
		err = closeErr
	}
	return found, err
}

// stepBack looks for the first newer row from the end; near is false where it
// gave up.
func stepBack(it Iterator, after gearsfs.Seq, end gearsfs.Place) (found gearsfs.Place, near bool, err error) {
	found = end
	ok := it.Last()
	for range followStepsMax {
		if !ok {
			return found, true, nil
		}
		at, err := persist.ParsePlace(it.Key())
		if err != nil || at.Seq <= after {
			return found, true, err
		}
		found = at
		ok = it.Prev()
	}
	return found, false, nil
}

// search finds by halving the least position whose first row is newer.
func (p *peeking) search(it Iterator, after gearsfs.Seq) (gearsfs.Place, error) {
	var failed error
	var key []byte
	head, n := p.state.Head.Pos, p.state.Tail-p.state.Head.Pos
	i := sort.Search(int(min(n, math.MaxInt)), func(i int) bool {
		key = persist.AppendRecordKey(key[:0], p.ino, p.key, gearsfs.Place{Pos: head + gearsfs.Pos(i)})
		if failed != nil || !it.SeekGE(key) {
			return true
		}
		at, err := persist.ParsePlace(it.Key())
		failed = err
		return at.Seq > after
	})
	// Empty records share their position with what follows them: the row in
	// front of the found ones may be followed by newer ones at its position, and
	// where all are empty those at the first one are not all newer.
	at := gearsfs.Place{Pos: head + gearsfs.Pos(i)}
	key = persist.AppendRecordKey(key[:0], p.ino, p.key, at)
	at.Seq = after + 1
	if failed == nil && it.SeekLT(key) {
		var before gearsfs.Place
		if before, failed = persist.ParsePlace(it.Key()); failed == nil {
			at = gearsfs.Place{Pos: before.Pos, Seq: after + 1}
		}
	}
	return at, failed
}
