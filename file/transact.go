package file

import (
	"errors"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// Bounds of a transaction. What it takes and looks at is within the bounds of
// one take together, what it puts within those of one put.
const (
	transactStepsMax = 64
	// lookBytesMax bounds what its looks show: that is kept with the session
	// until the answer is confirmed.
	lookBytesMax = 1 << 20
)

// A transaction is checked step by step before anything changes. Each step is
// checked against a tally: the state of its stream as the steps before it in
// the order of what is done would leave it.
//
//	conditions, takes, looks -> settlements -> updates -> puts
//
// Then all steps are done in the same order, and none of them can fail. The
// puts of a transaction do not wait behind puts of their session that found no
// room: it happens whole at one moment, which is later than it was asked for.
type transaction struct {
	m       *Machine
	c       *context
	files   map[txFileKey]*txFile
	steps   []txStep
	fences  map[uint64]struct{} // that were settled, where several steps settle
	records int                 // that are taken and shown
	bytes   uint64
	looked  uint64 // bytes that are shown
	news    int    // records that are put
	newSize uint64
}

// txFileKey is an inode, or a name that leads nowhere.
type txFileKey struct {
	ino, dir uint64
	name     string
}

type txFile struct {
	n       *node // nil where it is missing
	target  *wire.Target
	streams map[gearsfs.Key]*tally
}

// tally is a stream as the steps so far would leave it.
type tally struct {
	file   *txFile
	key    gearsfs.Key
	s      *openStream // nil where it is missing
	state  stream.State
	taken  uint64              // records that takes get
	bytes  uint64              // of those
	putIDs map[string]struct{} // nil until a step puts
}

// txStep is what the check of a step found out for doing it.
type txStep struct {
	t       *tally // of a take: that which serves it
	looked  []stream.Taken
	settled []*openStream // by receipt
	fresh   []*wire.NewRecord
	known   uint64
}

// The order in which the steps are done.
const (
	phaseRead = iota
	phaseSettle
	phaseUpdate
	phasePut
	phases
)

func phaseOf(step *wire.Step) int {
	switch step.GetOp().(type) {
	case *wire.Step_Settle:
		return phaseSettle
	case *wire.Step_Update:
		return phaseUpdate
	case *wire.Step_Put:
		return phasePut
	}
	return phaseRead
}

// applyTransact does all steps of a transaction or none.
func (m *Machine) applyTransact(c *context, cmd *wire.Command, op *wire.Transact) *wire.Answer {
	if len(op.Steps) == 0 || len(op.Steps) > transactStepsMax {
		return m.refuse(gearsfs.ErrInvalid.Because("a transaction has 1 to %d steps", transactStepsMax))
	}
	t := &transaction{
		m: m, c: c, files: make(map[txFileKey]*txFile), steps: make([]txStep, len(op.Steps)),
	}
	if settling(op.Steps) > 1 {
		t.fences = make(map[uint64]struct{})
	}
	if failed, err := t.check(op.Steps); err != nil {
		answer := m.refuse(err)
		answer.FailedStep = uint32(failed)
		return answer
	}
	answer, err := t.do(cmd, op.Steps)
	if err != nil {
		return m.refuse(err)
	}
	return answer
}

// settling counts the steps that settle.
func settling(steps []*wire.Step) (n int) {
	for _, step := range steps {
		if phaseOf(step) == phaseSettle {
			n++
		}
	}
	return n
}

// check returns the first step, counted from 1, that can't be done: one that
// never can be before one that can't be now.
func (t *transaction) check(steps []*wire.Step) (failed int, err error) {
	for phase := range phases {
		for i, step := range steps {
			if phaseOf(step) != phase {
				continue
			}
			stepErr := t.checkStep(&t.steps[i], step)
			switch {
			case stepErr == nil:
			case !mayPass(&t.steps[i], step, stepErr):
				return i + 1, stepErr
			case err == nil:
				failed, err = i+1, stepErr
			}
		}
	}
	if err == nil {
		return t.room(steps)
	}
	return failed, err
}

// mayPass reports whether a step that failed can succeed later.
func mayPass(s *txStep, step *wire.Step, err error) bool {
	switch step.Op.(type) {
	case *wire.Step_Condition:
		return errors.Is(err, gearsfs.ErrUnmet)
	case *wire.Step_Put:
		return errors.Is(err, gearsfs.ErrFull) && s.t.state.Full != gearsfs.FullRefuse
	}
	return errors.Is(err, gearsfs.ErrEmpty)
}

func (t *transaction) checkStep(s *txStep, step *wire.Step) error {
	switch op := step.GetOp().(type) {
	case *wire.Step_Condition:
		return t.checkCondition(op.Condition)
	case *wire.Step_Take:
		return t.checkTake(s, op.Take)
	case *wire.Step_Look:
		return t.checkLook(s, op.Look)
	case *wire.Step_Settle:
		return t.checkSettle(s, op.Settle)
	case *wire.Step_Update:
		return t.checkUpdate(s, op.Update)
	case *wire.Step_Put:
		return t.checkPut(s, op.Put)
	}
	return gearsfs.ErrUnknownOp
}

// file returns the file that a step is about.
func (t *transaction) file(target *wire.Target, want uint32) (*txFile, error) {
	n, err := t.m.queueFile(t.c, target, want)
	if err != nil {
		return nil, err
	}
	if n != nil {
		return t.known(n), nil
	}
	key := txFileKey{dir: target.GetDir(), name: target.GetName()}
	f := t.files[key]
	if f == nil {
		f = &txFile{target: target, streams: make(map[gearsfs.Key]*tally)}
		t.files[key] = f
	}
	return f, nil
}

func (t *transaction) known(n *node) *txFile {
	key := txFileKey{ino: uint64(n.ino)}
	f := t.files[key]
	if f == nil {
		f = &txFile{n: n, streams: make(map[gearsfs.Key]*tally)}
		t.files[key] = f
	}
	return f
}

// tally returns a stream of a file.
func (t *transaction) tally(f *txFile, key gearsfs.Key) (*tally, error) {
	if y := f.streams[key]; y != nil {
		return y, nil
	}
	if err := key.Check(); err != nil {
		return nil, err
	}
	y := &tally{file: f, key: key}
	if f.n != nil {
		var err error
		if y.s, err = t.m.stream(f.n, key); err != nil {
			return nil, err
		}
	}
	y.state = *stateOrNew(y.s)
	if y.state.Memory {
		return nil, errMemory
	}
	f.streams[key] = y
	return y, nil
}

// stream returns the tally of the stream that a step is about.
func (t *transaction) stream(target *wire.Target, key string, want uint32) (*tally, error) {
	f, err := t.file(target, want)
	if err != nil {
		return nil, err
	}
	return t.tally(f, gearsfs.Key(key))
}

// checkCondition looks at a stream as it is before the transaction: no take
// changes what conditions see.
func (t *transaction) checkCondition(op *wire.Condition) error {
	y, err := t.stream(op.Target, op.Key, mayRead)
	if err != nil {
		return err
	}
	state := stateOrNew(y.s)
	if op.NewestSeq != nil && *op.NewestSeq != uint64(state.Newest()) {
		return gearsfs.ErrUnmet.Because("the newest seq is %d, not %d", state.Newest(), *op.NewestSeq)
	}
	if op.Empty != nil && *op.Empty != state.Drained() {
		return gearsfs.ErrUnmet.Because("empty is %v, not %v", state.Drained(), *op.Empty)
	}
	if state.Ready < op.AtLeast {
		return gearsfs.ErrUnmet.Because("%d records can be taken, not %d", state.Ready, op.AtLeast)
	}
	if op.HeadSeq == nil {
		return nil
	}
	var first gearsfs.Place
	if y.s != nil {
		if first, _, err = y.s.queue.First(); err != nil {
			return err
		}
	}
	if *op.HeadSeq != uint64(first.Seq) {
		return gearsfs.ErrUnmet.Because("the first record has seq %d, not %d", first.Seq, *op.HeadSeq)
	}
	return nil
}

// checkTake finds the first of a take's keys that has all its records.
func (t *transaction) checkTake(s *txStep, op *wire.Take) error {
	if err := checkTake(t.c, op); err != nil {
		return err
	}
	f, err := t.file(op.Target, mayRead|mayWrite)
	if err != nil {
		return err
	}
	want := uint64(max(op.Max, 1))
	if want > gearsfs.BatchRecordsMax {
		return gearsfs.ErrTooBig.Because("a transaction takes at most %d records", gearsfs.BatchRecordsMax)
	}
	ended := true
	for _, k := range op.Keys {
		y, err := t.tally(f, gearsfs.Key(k))
		if err != nil {
			return err
		}
		state := &y.state
		if y.key == gearsfs.DataKey && state.Blocks && !op.Force {
			return gearsfs.ErrBlocks
		}
		if s.t == nil && state.Ready >= want {
			s.t = y
		}
		ended = ended && state.Sealed && state.Ready+state.Leased+state.Delayed < want
	}
	switch {
	case s.t != nil:
		return t.tallyTake(s.t, want, op.Lease)
	case ended:
		return gearsfs.ErrEnd
	}
	return gearsfs.ErrEmpty
}

func (t *transaction) tallyTake(y *tally, n uint64, lease bool) error {
	bytes, err := y.s.queue.Measure(y.taken+n, y.bytes+gearsfs.BatchBytesMax)
	if err != nil {
		return err
	}
	y.taken += n
	bytes, y.bytes = bytes-y.bytes, bytes
	y.state.Ready -= n
	if lease {
		y.state.Leased += n
	} else {
		y.state.Bytes -= bytes
	}
	return t.shows(int(n), bytes)
}

// shows counts what the answer is to hold.
func (t *transaction) shows(records int, bytes uint64) error {
	t.records += records
	t.bytes += bytes
	if t.records > gearsfs.BatchRecordsMax || t.bytes > gearsfs.BatchBytesMax {
		return gearsfs.ErrTooBig.Because("a transaction takes at most %d records of %d bytes", gearsfs.BatchRecordsMax, gearsfs.BatchBytesMax)
	}
	return nil
}

// checkLook looks: what it sees is that before the transaction.
func (t *transaction) checkLook(s *txStep, op *wire.Look) error {
	y, err := t.stream(op.Target, op.Key, mayRead)
	if err != nil || y.s == nil {
		s.t = y
		return err
	}
	s.t = y
	limit := int(min(max(op.Max, 1), gearsfs.BatchRecordsMax))
	if s.looked, err = y.s.queue.Peek(nil, limit, int(lookBytesMax-t.looked)); err != nil {
		return err
	}
	var bytes uint64
	for i := range s.looked {
		bytes += uint64(s.looked[i].Record.Len())
	}
	t.looked += bytes
	if t.looked > lookBytesMax {
		return gearsfs.ErrTooBig.Because("a transaction looks at no more than %d bytes", lookBytesMax)
	}
	return t.shows(len(s.looked), bytes)
}

func (t *transaction) checkSettle(s *txStep, op *wire.Settle) error {
	if err := checkSettle(op); err != nil {
		return err
	}
	var err error
	if s.settled, err = t.m.checkReceipts(t.c, op.Receipts); err != nil {
		return err
	}
	var y *tally
	for i, r := range op.Receipts {
		if _, twice := t.fences[r.Fence]; twice {
			return gearsfs.ErrGone.Because("a receipt is there twice")
		}
		if t.fences != nil {
			t.fences[r.Fence] = struct{}{}
		}
		held := s.settled[i]
		if y == nil || y.s != held {
			if y, err = t.tally(t.known(held.node), held.key); err != nil {
				return err
			}
		}
		switch {
		case op.Extend != 0:
		case op.Return: // what moves to the dead stream makes room that no step gets
			y.state.Leased--
			y.state.Ready++
		default:
			out, _ := held.queue.Out(gearsfs.Place{Pos: gearsfs.Pos(r.Pos), Seq: gearsfs.Seq(r.Seq)})
			y.state.Leased--
			y.state.Bytes -= out.Bytes
		}
	}
	return nil
}

func (t *transaction) checkUpdate(s *txStep, op *wire.Update) error {
	y, err := t.toPut(op.Target, op.Key)
	if err != nil {
		return err
	}
	s.t = y
	if s.fresh, s.known, err = t.m.checkUpdate(y.s, &y.state, op, y.putIDs); err != nil {
		return err
	}
	if len(s.fresh) > 0 {
		state := &y.state
		state.Ready, state.Leased, state.Delayed, state.Bytes = 0, 0, 0, 0
		t.tallyPut(state, s.fresh)
	}
	return t.puts(s.fresh)
}

func (t *transaction) checkPut(s *txStep, op *wire.Put) error {
	if err := CheckRecords(op.Records); err != nil {
		return err
	}
	y, err := t.toPut(op.Target, op.Key)
	if err != nil {
		return err
	}
	s.t = y
	if s.fresh, s.known, err = t.m.unknown(y.s, op.Records, y.putIDs); err != nil {
		return err
	}
	if len(s.fresh) > 0 {
		n := uint64(len(s.fresh))
		full, err := false, checkAppend(&y.state, s.fresh)
		if err == nil {
			err = checkDelay(t.c, &y.state, op, len(s.fresh))
		}
		if err == nil {
			full, err = isFull(&y.state, n, bytesOf(s.fresh))
		}
		if full {
			err = gearsfs.ErrFull
		}
		if err != nil {
			return err
		}
		t.tallyPut(&y.state, s.fresh)
		if untilOf(t.c, op) != 0 {
			y.state.Ready -= n
			y.state.Delayed += n
		}
	}
	y.state.Sealed = y.state.Sealed || op.Seal
	return t.puts(s.fresh)
}

// toPut returns the stream that a step puts into.
func (t *transaction) toPut(target *wire.Target, key string) (*tally, error) {
	y, err := t.stream(target, key, mayWrite)
	if err == nil && y.file.n == nil {
		err = t.m.mayMakeFile(t.c, target)
	}
	if err == nil && y.putIDs == nil {
		y.putIDs = make(map[string]struct{})
	}
	return y, err
}

func (t *transaction) tallyPut(state *stream.State, records []*wire.NewRecord) {
	bytes := bytesOf(records)
	state.Ready += uint64(len(records))
	state.NextSeq += gearsfs.Seq(len(records))
	state.Bytes += bytes
	state.Tail += gearsfs.Pos(bytes)
}

// puts counts what is put in all.
func (t *transaction) puts(records []*wire.NewRecord) error {
	t.news += len(records)
	t.newSize += bytesOf(records)
	if t.news > gearsfs.BatchRecordsMax || t.newSize > gearsfs.BatchBytesMax {
		return gearsfs.ErrTooBig.Because("a transaction puts at most %d records of %d bytes", gearsfs.BatchRecordsMax, gearsfs.BatchBytesMax)
	}
	return nil
}
