package file

import (
	"slices"
	"strings"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

const (
	takeKeysMax    = 64
	newFilePermits = 0o644
)

// streamOf returns the stream that a command is about, where it exists, and
// its file. Both are nil where the file does not. want is what the caller must
// be permitted to do with the file.
func (m *Machine) streamOf(c *context, t *wire.Target, key gearsfs.Key, want uint32) (*node, *openStream, error) {
	if err := key.Check(); err != nil {
		return nil, nil, err
	}
	n, err := m.queueFile(c, t, want)
	if err != nil || n == nil {
		return nil, nil, err
	}
	s, err := m.stream(n, key)
	return n, s, err
}

// queueFile returns the file that a command is about, nil where its name leads
// nowhere.
func (m *Machine) queueFile(c *context, t *wire.Target, want uint32) (*node, error) {
	n, err := m.findTarget(c, t)
	if err != nil || n == nil {
		return nil, err
	}
	if err := hasStreams(n.row.Mode); err != nil {
		return nil, err
	}
	return n, m.access(c, n, want)
}

// hasStreams returns the error for an inode that is no regular file.
func hasStreams(mode uint32) error {
	switch {
	case isFile(mode):
		return nil
	case isDir(mode):
		return gearsfs.ErrIsDir
	}
	return gearsfs.ErrInvalid.Because("not a regular file: it has no streams")
}

// dataChanged notes that the bytes that POSIX sees of a file have changed.
func (m *Machine) dataChanged(c *context, s *openStream) {
	if s.key != gearsfs.DataKey {
		return
	}
	m.wrote(c, s.node)
	m.change(c, s.node.ino, true)
}

// applyPut appends records to a stream, all or none.
func (m *Machine) applyPut(c *context, cmd *wire.Command, op *wire.Put) *wire.Answer {
	if err := CheckRecords(op.Records); err != nil {
		return m.refuse(err)
	}
	n, s, err := m.streamOf(c, op.Target, gearsfs.Key(op.Key), mayWrite)
	if err == nil && n == nil {
		err = m.mayMakeFile(c, op.Target)
	}
	var fresh []*wire.NewRecord
	var known uint64
	if err == nil {
		fresh, known, err = m.unknown(s, op.Records, nil)
	}
	if err == nil && n != nil && (len(op.Records) > 0 || op.Seal) {
		err = m.admit(c, cmd, op, n, s, fresh)
	}
	if err == nil {
		err = m.roomToPut(op.Target, n, s, fresh)
	}
	if err == nil {
		n, s, err = m.openToPut(c, op.Target, op.Key, op.Mode, n, s)
	}
	if err != nil {
		return m.refuse(err)
	}
	answer := &wire.Answer{Ino: uint64(n.ino)}
	if len(op.Records) == 1 {
		answer.FirstSeq, answer.LastSeq = known, known
	}
	if err := m.appendRecords(c, s, op, fresh, answer); err != nil {
		return m.refuse(err)
	}
	if op.Append {
		if answer.Attr, err = m.attr(n); err != nil {
			return m.refuse(err)
		}
	}
	return answer
}

// appendRecords does a put: of its records those whose ids were not known.
func (m *Machine) appendRecords(c *context, s *openStream, op *wire.Put, fresh []*wire.NewRecord, answer *wire.Answer) error {
	if err := m.makeRoom(c, s, fresh); err != nil {
		return err
	}
	touched := m.touch(s.node.ino, s.key)
	until := untilOf(c, op)
	ids := 0
	for i, r := range fresh {
		at := appendUntil(s, r, c.now, until)
		answer.LastSeq = uint64(at.Seq)
		if i == 0 {
			answer.FirstSeq = answer.LastSeq
		}
		if r.Id != "" {
			m.rememberID(c, s, r.Id, at.Seq)
			ids++
		}
	}
	m.counts.records.Put += uint64(len(fresh))
	if len(fresh) > 0 {
		touched.Ready, touched.Appended = touched.Ready || until == 0, true
		m.dataChanged(c, s)
	}
	if op.Seal && !s.queue.State().Sealed {
		s.queue.SetSealed(true)
		touched.Sealed = true
	}
	m.dirtyStream(s)
	if ids == 0 {
		return nil
	}
	_, err := m.forgetIDs(s, ids+forgetMax)
	return err
}

// CheckRecords checks what is to be put to any stream.
func CheckRecords(records []*wire.NewRecord) error {
	if len(records) > gearsfs.BatchRecordsMax {
		return gearsfs.ErrTooBig.Because("a put has at most %d records", gearsfs.BatchRecordsMax)
	}
	bytes := uint64(0)
	for _, r := range records {
		if err := checkForm(r); err != nil {
			return err
		}
		n := lengthOf(r)
		if n > gearsfs.RecordBytesMax {
			return gearsfs.ErrTooBig.Because("a record has at most %d bytes", gearsfs.RecordBytesMax)
		}
		if len(r.Type) > gearsfs.KeyBytesMax {
			return gearsfs.ErrInvalid.Because("a record's type has at most %d bytes", gearsfs.KeyBytesMax)
		}
		if len(r.Id) > gearsfs.KeyBytesMax {
			return gearsfs.ErrInvalid.Because("a record's id has at most %d bytes", gearsfs.KeyBytesMax)
		}
		bytes += n
	}
	if bytes > gearsfs.BatchBytesMax {
		return gearsfs.ErrTooBig.Because("a put has at most %d bytes", gearsfs.BatchBytesMax)
	}
	return checkDisjoint(records)
}

// admit checks whether a stream, nil where it is missing in file n, takes the
// records of a put that are fresh. That a session's put finds no room is
// remembered: its later ones wait behind it, so that they keep their order. Where
// one of them goes in all the same, and says that its node has refused the earlier
// one, because who asked does not wait, that one is refused from then on: its
// refusal may have been lost, and it may come again when there is room.
func (m *Machine) admit(c *context, cmd *wire.Command, op *wire.Put, n *node, s *openStream, fresh []*wire.NewRecord) error {
	full := false
	if s != nil && len(fresh) > 0 {
		state := s.queue.State()
		err := checkAppend(state, fresh)
		if state.Memory {
			err = errMemory
		}
		if err == nil {
			err = checkDelay(c, state, op, len(fresh))
		}
		if err == nil {
			full, err = isFull(state, uint64(len(fresh)), bytesOf(fresh))
		}
		if err != nil {
			return err
		}
	}
	if !recognised(c, cmd) {
		if full {
			return gearsfs.ErrFull
		}
		return nil
	}
	known, err := m.session(c.session)
	if err != nil {
		return err
	}
	adds := len(fresh) > 0 || op.Seal
	if known != nil && len(known.row.Blocked) > 0 {
		if adds && wasRefused(known, cmd, op, n) {
			return errRefused
		}
		full = m.behind(known, cmd, op, n) || full
	}
	switch {
	case !adds:
		return nil
	case !full:
		return m.refuseBefore(c, known, cmd, op, n)
	}
	return m.block(c, cmd, op, n, s != nil && s.queue.State().Full == gearsfs.FullRefuse)
}

// errRefused is of a put that found no room and is not to wait for some.
var errRefused = gearsfs.ErrFull.Because("the stream was full")

// sameStream says whether a put that was blocked is to the stream of op, in n.
func sameStream(b *wire.BlockedPut, op *wire.Put, n *node) bool {
	return b.Ino == uint64(n.ino) && b.Key == op.Key
}

// wasRefused says whether a put was refused for good.
func wasRefused(known *session, cmd *wire.Command, op *wire.Put, n *node) bool {
	return slices.ContainsFunc(known.row.Blocked, func(b *wire.BlockedPut) bool {
		return b.Refused && b.Seq == cmd.Seq && sameStream(b, op, n)
	})
}

// behind reports whether an earlier put of the session waits for room in the
// stream. One that is tried again as the first in line shows that none does.
// It takes the put itself from those that wait.
func (m *Machine) behind(known *session, cmd *wire.Command, op *wire.Put, n *node) (behind bool) {
	was := len(known.row.Blocked)
	known.row.Blocked = slices.DeleteFunc(known.row.Blocked, func(b *wire.BlockedPut) bool {
		if !sameStream(b, op, n) || b.Refused {
			return false
		}
		behind = behind || b.Seq < cmd.Seq && !op.Retry
		return b.Seq == cmd.Seq
	})
	if len(known.row.Blocked) != was {
		m.dirtySession(known)
	}
	return behind
}

// refuseBefore refuses for good what the session asked for before a put that goes
// in, and what its node has refused. Whatever else found no room before it waits
// for some: a session that asks for several puts at once may see them come in any
// order.
func (m *Machine) refuseBefore(c *context, known *session, cmd *wire.Command, op *wire.Put, n *node) error {
	if len(op.Refused) > 0 && known == nil {
		var err error
		if known, err = m.openSession(c, cmd); err != nil {
			return err
		}
	}
	if known == nil {
		return nil
	}
	row := &known.row
	for _, b := range row.Blocked {
		if sameStream(b, op, n) && !b.Refused && b.Seq < cmd.Seq && slices.Contains(op.Refused, b.Seq) {
			b.Refused = true
			m.dirtySession(known)
		}
	}
	for _, seq := range op.Refused {
		_, done := findAnswer(row, seq)
		listed := slices.ContainsFunc(row.Blocked, func(b *wire.BlockedPut) bool { return b.Seq == seq })
		if !done && !listed && seq < cmd.Seq && !isConfirmed(row, seq) && len(row.Blocked) < answersMax {
			row.Blocked = append(row.Blocked, blockedPut(op, n, seq, true))
			m.dirtySession(known)
		}
	}
	return nil
}

func blockedPut(op *wire.Put, n *node, seq uint64, refused bool) *wire.BlockedPut {
	return &wire.BlockedPut{Ino: uint64(n.ino), Key: strings.Clone(op.Key), Seq: seq, Refused: refused}
}

// block remembers that a put found no room, or that it is refused for that, and
// returns gearsfs.ErrFull.
func (m *Machine) block(c *context, cmd *wire.Command, op *wire.Put, n *node, refused bool) error {
	known, err := m.openSession(c, cmd)
	if err != nil {
		return err
	}
	known.row.Blocked = append(known.row.Blocked, blockedPut(op, n, cmd.Seq, refused))
	return gearsfs.ErrFull
}

// applyTake hands out records of the first key that has some.
func (m *Machine) applyTake(c *context, cmd *wire.Command, op *wire.Take) *wire.Answer {
	limit := int(min(max(op.Max, 1), gearsfs.BatchRecordsMax))
	if err := checkTake(c, op); err != nil {
		return m.refuse(err)
	}
	s, err := m.ready(c, op)
	if err != nil {
		return m.refuse(err)
	}
	records, err := m.handOut(c, s, op, limit, recognised(c, cmd))
	if err != nil {
		return m.refuse(err)
	}
	return &wire.Answer{Ino: uint64(s.node.ino), Records: records}
}

// handOut takes or leases up to limit records of a stream, as op says. With
// keep, an answer will refer to their rows.
func (m *Machine) handOut(c *context, s *openStream, op *wire.Take, limit int, keep bool) (records []*wire.TakenRecord, err error) {
	m.sessions.taken = m.sessions.taken[:0]
	if op.Lease {
		m.sessions.taken, err = s.queue.Lease(m.sessions.taken, limit, gearsfs.BatchBytesMax, m.grant(c, op))
		m.volume.NextFence += uint64(len(m.sessions.taken))
		m.counts.records.Leased += uint64(len(m.sessions.taken))
	} else {
		m.sessions.taken, err = s.queue.Take(m.sessions.taken, limit, gearsfs.BatchBytesMax, keep)
		m.counts.records.Taken += uint64(len(m.sessions.taken))
	}
	if err != nil {
		return nil, err
	}
	m.dirtyStream(s)
	records = takenRecords(s, m.sessions.taken)
	clear(m.sessions.taken)
	if !op.Lease {
		m.consumed(c, s)
	}
	return records, nil
}

func takenRecords(s *openStream, taken []stream.Taken) []*wire.TakenRecord {
	records := make([]wire.TakenRecord, len(taken))
	list := make([]*wire.TakenRecord, len(taken))
	for i := range taken {
		t, r := &taken[i], &records[i]
		r.Ino, r.Key = uint64(s.node.ino), string(s.key)
		r.Pos, r.Seq = uint64(t.Place.Pos), uint64(t.Place.Seq)
		r.Data, r.Type, r.Time = t.Record.Data, t.Record.Type, t.Record.Time
		r.Extents = ExtentsToWire(t.Record.Extents)
		r.Deliveries, r.Fence, r.Deadline = t.Deliveries, t.Fence, t.Deadline
		list[i] = r
	}
	return list
}

// checkTake checks what a take asks for.
func checkTake(c *context, op *wire.Take) error {
	if len(op.Keys) == 0 || len(op.Keys) > takeKeysMax {
		return gearsfs.ErrInvalid.Because("a take has 1 to %d keys", takeKeysMax)
	}
	for _, k := range op.Keys {
		if err := gearsfs.Key(k).Check(); err != nil {
			return err
		}
	}
	return checkLease(c, op)
}

// ready returns the stream that a take is served from.
func (m *Machine) ready(c *context, op *wire.Take) (*openStream, error) {
	n, err := m.queueFile(c, op.Target, mayRead|mayWrite)
	if err != nil {
		return nil, err
	}
	if n == nil {
		return nil, gearsfs.ErrEmpty
	}
	var found *openStream
	ended := true
	for _, k := range op.Keys {
		s, err := m.stream(n, gearsfs.Key(k))
		if err != nil {
			return nil, err
		}
		if s == nil {
			ended = false
			continue
		}
		state := s.queue.State()
		if s.key == gearsfs.DataKey && state.Blocks && !op.Force {
			return nil, gearsfs.ErrBlocks
		}
		if state.Memory {
			return nil, errMemory
		}
		if found == nil && state.Ready > 0 {
			found = s
		}
		ended = ended && state.Sealed && state.Drained()
	}
	switch {
	case found != nil:
		return found, nil
	case ended:
		return nil, gearsfs.ErrEnd
	}
	return nil, gearsfs.ErrEmpty
}

// consumed notes that records of a stream are gone.
func (m *Machine) consumed(c *context, s *openStream) {
	touched := m.touch(s.node.ino, s.key)
	touched.Room = true
	if state := s.queue.State(); state.Sealed && state.Drained() {
		touched.Sealed = true // whoever waits for a record learns that none comes
	}
	if s.key == gearsfs.DataKey {
		s.node.row.Taken = true
		m.dataChanged(c, s)
	}
}

// applySettle ends or extends leases that the command may end, all or none.
func (m *Machine) applySettle(c *context, op *wire.Settle) *wire.Answer {
	if err := checkSettle(op); err != nil {
		return m.refuse(err)
	}
	streams, err := m.checkReceipts(c, op.Receipts)
	if err != nil {
		return m.refuse(err)
	}
	if err := m.settleAll(c, op, streams); err != nil {
		return m.refuse(err)
	}
	return &wire.Answer{}
}

// settleAll does a settlement of receipts of those streams.
func (m *Machine) settleAll(c *context, op *wire.Settle, streams []*openStream) error {
	for i, r := range op.Receipts {
		s, at := streams[i], gearsfs.Place{Pos: gearsfs.Pos(r.Pos), Seq: gearsfs.Seq(r.Seq)}
		if err := m.settle(c, s, at, op); err != nil {
			return err
		}
		if acks := !op.Return && op.Extend == 0; acks && (i+1 == len(streams) || streams[i+1] != s) {
			m.consumed(c, s)
		}
	}
	return nil
}

// checkReceipts returns the streams of receipts that the command may all settle,
// none twice.
func (m *Machine) checkReceipts(c *context, receipts []*wire.Receipt) ([]*openStream, error) {
	streams := make([]*openStream, len(receipts))
	// Fences are the volume's, each lease has its own. They mostly rise, as they
	// were given: then none is there twice.
	var seen map[uint64]struct{}
	for i, r := range receipts {
		if i > 0 && r.Ino == receipts[i-1].Ino && r.Key == receipts[i-1].Key {
			streams[i] = streams[i-1]
		} else {
			n, err := m.reach(gearsfs.Ino(r.Ino))
			if err != nil {
				return nil, err
			}
			if n != nil && isFile(n.row.Mode) {
				if streams[i], err = m.stream(n, gearsfs.Key(r.Key)); err != nil {
					return nil, err
				}
			}
		}
		at := gearsfs.Place{Pos: gearsfs.Pos(r.Pos), Seq: gearsfs.Seq(r.Seq)}
		if err := m.maySettle(c, streams[i], at, r.Fence); err != nil {
			return nil, err
		}
		if seen == nil && i > 0 && r.Fence <= receipts[i-1].Fence {
			seen = make(map[uint64]struct{}, len(receipts))
			for _, before := range receipts[:i] {
				seen[before.Fence] = struct{}{}
			}
		}
		if _, twice := seen[r.Fence]; twice {
			return nil, gearsfs.ErrGone.Because("a receipt is there twice")
		}
		if seen != nil {
			seen[r.Fence] = struct{}{}
		}
	}
	return streams, nil
}

// applyConfigure seals, unseals, clears, drops or limits a stream.
func (m *Machine) applyConfigure(c *context, op *wire.Configure) *wire.Answer {
	if op.Drop && gearsfs.Key(op.Key) == gearsfs.DataKey {
		return m.refuse(gearsfs.ErrInvalid.Because("the data stream can't be dropped"))
	}
	n, s, err := m.streamOf(c, op.Target, gearsfs.Key(op.Key), mayWrite)
	if err == nil {
		err = checkRules(op.Settings)
	}
	switch {
	case err != nil:
	case n == nil:
		err = gearsfs.ErrNotFound
	case s != nil && (op.Clear || op.Drop) && s.queue.State().AppendOnly:
		err = errAppendOnly
	case s == nil && (op.Clear || op.Drop) && op.Seal == nil && !op.SetLimits && op.Settings == nil:
		return &wire.Answer{Ino: uint64(n.ino)} // there is nothing to remove
	default:
		err = checkSettings(gearsfs.Key(op.Key), stateOrNew(s), op.Settings)
	}
	if err == nil && s != nil && (op.Clear || op.Drop) {
		err = m.checkRemoval(s, 0)
	}
	if err != nil {
		return m.refuse(err)
	}
	if s == nil {
		s = m.makeStream(n, gearsfs.Key(strings.Clone(op.Key)))
	}
	if err := m.configure(c, s, op); err != nil {
		return m.refuse(err)
	}
	return &wire.Answer{Ino: uint64(n.ino)}
}

func (m *Machine) configure(c *context, s *openStream, op *wire.Configure) error {
	m.dirtyStream(s)
	if op.Drop {
		t := m.touch(s.node.ino, s.key)
		t.Gone, t.Room = true, true
		return m.dropStream(s)
	}
	if op.SetLimits {
		s.queue.SetLimits(gearsfs.Limits{Records: op.LimitRecords, Bytes: op.LimitBytes})
		m.touch(s.node.ino, s.key).Room = true
	}
	if op.Settings != nil {
		m.setRules(s, op.Settings)
		m.setSettings(s, op.Settings)
	}
	if op.Seal != nil && *op.Seal != s.queue.State().Sealed {
		s.queue.SetSealed(*op.Seal)
		m.touch(s.node.ino, s.key).Sealed = true
	}
	if op.Clear {
		if err := s.queue.Clear(); err != nil {
			return err
		}
		t := m.touch(s.node.ino, s.key)
		t.Room = true
		t.Sealed = t.Sealed || s.queue.State().Sealed
		m.dataChanged(c, s)
	}
	return nil
}
