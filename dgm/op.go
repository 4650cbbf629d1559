package dgm

import (
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/replica"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// op is one operation of a session on its way through a tenure.
//
//	       start             can run            answered
//	idle ─────────▶ waiting ─────────▶ proposed ─────────▶ done
//	  │                ▲                  │ empty, full       ▲
//	  │                └──────────────────┘                   │
//	  └── needs no waiting ───────────────────────────────────┘
//
// (A command whose path had led elsewhere begins anew.) park moves it to waiting, wake* to proposed, answered on to done or, where
// the attempt changed nothing, back to its old place among the waiting; cancel
// ends it at once where it waits and otherwise as soon as it would wait again.
type op struct {
	ten  *tenure
	sess *session             // nil for a command of the volume's own
	done func(*wire.Response) // called exactly once, must not block

	change *wire.Change // nil for a peek
	peek   *wire.Peek
	path   string    // as asked for
	epoch  uint32    // the session's when it asked
	since  time.Time // when it first waited
	prop   replica.Proposal
	bytes  int                       // of the command, while it is proposed
	then   func(*wire.Answer, error) // in place of answered

	// Guarded by tenure.mu.
	state    opState
	ended    error       // set by cancel: do not wait again
	ino      gearsfs.Ino // the file; 0 while it is missing
	name     nameKey     // the missing file
	keys     []gearsfs.Key
	waiters  []*stream.Waiter[*op]
	promised []promise // records that what is proposed was counted for
	turn     *spot     // where a put that waited for room tries again
	ticket   uint64    // its place among those that wait; of puts and transactions that in which they came
	passed   uint32    // how often a younger one ran where it waits
	versions []uint64  // of a proposed transaction's streams, before it was proposed
	misleads int
	rewrites int
	lacks    *idAt        // of a put that waits: where it is in waits.ids
	leasesAt []place      // of a transaction that waits: where it is in waits.leases
	logged   bool         // it has been in the log on its way to memory, which has the rest to do
	asking   bool         // it asks first whether it was done in another place (moved.go), and
	asked    bool         // has done so
	turnAt   *gearsfs.Ino // of what goes in turn (configure.go): the file whose turn it has, 0 for none
	coming   int          // attempts that are not on their way yet; of a put, none of its session passes it then
	went     bool         // it was done
	inMemory bool         // its stream's records are
	into     gearsfs.Ino  // the file that a put went to

	putBefore, putBehind *op // of a put: its neighbours in session.puts, where it is listed
	listed               bool

	keyed [1]gearsfs.Key // memory for keys
	alone [1]*op         // and for submit
}

type opState uint8

const (
	opIdle opState = iota
	opWaiting
	opProposed
	opDone
)

// nameKey is a name in a directory.
type nameKey struct {
	dir  gearsfs.Ino
	name string
}

// promise counts records that are about to be taken, so that a put wakes as
// many waiters as there are records.
type promise struct {
	place
	line    *line
	records uint64
}

// place is a stream.
type place struct {
	ino gearsfs.Ino
	key gearsfs.Key
}

// canceller ends what start began and what waits: with why at once where it
// waits, else as soon as it would wait.
type canceller interface{ cancel(why error) }

func (o *op) isTake() bool { return o.change != nil && o.change.Command.GetTake() != nil }

// byPath says whether a path named a file of the operation's.
func (o *op) byPath() bool {
	for _, f := range filesOf(o.change) {
		if f.path != "" {
			return true
		}
	}
	return false
}

// lock is the lock that the operation is to have or give up, nil where it is
// about none.
func (o *op) lock() *wire.Lock {
	if o.change == nil {
		return nil
	}
	return o.change.Command.GetLock()
}

func (o *op) isPut() bool { return o.change != nil && o.change.Command.GetPut() != nil }

// transaction is what the operation is to do, nil where it is none.
func (o *op) transaction() *wire.Transact {
	if o.change == nil {
		return nil
	}
	return o.change.Command.GetTransact()
}

func (o *op) kind() string {
	switch {
	case o.peek != nil:
		return "peek"
	case o.isTake():
		return "take"
	case o.isPut():
		return "put"
	case o.lock() != nil:
		return "lock"
	}
	return "transaction"
}

// noWait says that the operation is not to wait for records or room.
func (o *op) noWait() bool {
	if o.peek != nil {
		return o.peek.NoWait
	}
	return o.change.NoWait
}

// byItself is the operation as what submit takes.
func (o *op) byItself() []*op {
	o.alone[0] = o
	return o.alone[:]
}

func (o *op) fail(err error) { o.done(failure(err)) }

// failCertain ends the operation with an error that speaks of the state, once
// that state is certain.
func (o *op) failCertain(err error) { o.ten.vol.answer(nil, err, false, replica.Vouch{}, o.done) }

// refuse ends a change that this node does not bring to the log, because of why.
// One that was sent before may be there already, and have happened: that is known
// behind all that is on its way.
func (o *op) refuse(why error) {
	if !o.change.Retry {
		o.failCertain(why)
		return
	}
	t, m := o.ten, o.ten.vol.memory
	t.askLog(o, func(happened bool, err error) {
		switch {
		case err != nil:
			o.fail(err)
		case happened:
			t.toLog(o) // and gets the first answer
		case !m.MayKnow(o.sess.id):
			o.failCertain(why)
		default:
			m.Push(func() {
				defer m.Wake()
				if before := m.Kept(o.sess.id, o.change.Command); before != nil {
					t.doneMemory(o, before)
					return
				}
				o.failCertain(why)
			})
		}
	})
}

// proposal readies the operation's command for the replica.
func (o *op) proposal() *replica.Proposal {
	o.prop = replica.Proposal{
		Command: o.change.Command, Durable: !o.change.Fast, Prompt: o.sess != nil && o.sess.afar.Load(), Done: o.proposed,
	}
	return &o.prop
}

// proposed takes the replica's answer.
func (o *op) proposed(answer *wire.Answer, err error) {
	o.ten.passed(o)
	if o.ten.desk.leave() {
		close(o.ten.left)
	}
	o.outcome(answer, err)
}

// outcome goes on with what has become of the command.
func (o *op) outcome(answer *wire.Answer, err error) {
	if o.then != nil {
		o.then(answer, err)
		return
	}
	o.answered(answer, err)
}

// answered takes the outcome of a proposed command.
func (o *op) answered(answer *wire.Answer, err error) {
	if err != nil {
		o.settled()
		o.fail(err)
		return
	}
	switch code := gearsfs.Code(answer.Code); {
	case code == gearsfs.ErrStale.Code && o.byPath() && o.misleads < misleadsMax:
		o.misleads++
		o.misled()
	case code == gearsfs.ErrEmpty.Code && o.isTake(), code == gearsfs.ErrFull.Code && o.isPut() && !answer.Refused && o.ten.fullWaits(o):
		if o.ten.park(o) {
			return
		}
		o.failInVain(answer)
	case code == gearsfs.ErrFragmented.Code && answer.Fragmented != nil && o.rewrites < rewritesMax:
		o.rewrite(answer.Fragmented)
	case code == gearsfs.ErrOversize.Code && answer.Shrink != nil:
		o.shrink(answer.Shrink)
	case code == gearsfs.ErrLocked.Code && o.lock() != nil:
		if o.ten.park(o) {
			return
		}
		o.lockFailed(answer)
	case code == gearsfs.ErrUnsupported.Code && o.misplaced():
		o.relaunch()
	case o.mayPass(answer):
		if o.ten.parkTransaction(o, int(answer.FailedStep)-1) {
			return
		}
		o.failInVain(answer)
	default:
		o.went = code == 0
		if o.went && o.isPut() {
			o.into = gearsfs.Ino(answer.Ino)
		}
		o.settled()
		if o.went && o.change.Open {
			o.ten.openMade(o, answer)
			return
		}
		o.done(&wire.Response{Answer: answer})
		if o.lock() != nil && !o.went {
			o.ten.wakeLocks(o.ino) // who waited behind it
		}
	}
}

// relaunch begins an operation anew that has changed nothing.
func (o *op) relaunch() {
	t := o.ten
	t.mu.Lock()
	wake := o.takeBackLocked()
	o.beginAnewLocked()
	t.mu.Unlock()
	t.wakeAll(wake)
	t.launchAnew(o)
}

// failInVain ends an operation that found nothing and does not wait, or not any
// more.
func (o *op) failInVain(answer *wire.Answer) {
	err := answerError(answer)
	if ended := o.endedBy(); ended != nil {
		err = ended
	}
	o.failCertain(err)
}

// misleadsMax bounds how often a path is followed anew: that a file is gone may
// be said of another one, which no path named.
const misleadsMax = 16

// misled goes on with an operation that named its file by a path which had led
// to another by the time it was applied: it looks again, or, if it has waited
// for the file, ends.
func (o *op) misled() {
	if o.isTake() && len(o.waiters) > 0 {
		o.settled()
		o.done(failure(gearsfs.ErrRemoved))
		return
	}
	o.relaunch()
}

// settled marks the operation as done and takes its promise back. What was
// promised to it and is still there (the promise outlives the applying until
// the answer is on disk) may be what another waits for. Behind a put the next
// in line may fit too, or may have been kept from trying by it.
func (o *op) settled() {
	if o.keys == nil {
		return // never among those that wait
	}
	t := o.ten
	t.mu.Lock()
	o.state = opDone
	if o.into != 0 {
		t.recent.note(place{o.into, o.keys[0]})
	}
	var known []*op
	if o.went {
		known = t.waits.listedFor(o)
	}
	pass := t.putsWaitLocked(o)
	wake := o.takeBackLocked()
	held := o.holdsBackLocked()
	t.mu.Unlock()
	for _, p := range known {
		t.tryKnown(p)
	}
	if held {
		t.letOn(o.sess)
	}
	if pass {
		t.passPut(o)
	}
	t.wakeAll(wake)
}

// takeBackLocked is for an operation that is not proposed any more. It returns
// where others wait for what was promised to it.
func (o *op) takeBackLocked() (wake []place) {
	for _, p := range o.promised {
		p.line.promised -= p.records
		if s := o.ten.waits.spot(p.ino, p.key); s != nil && s.takes.Len()+s.txs.Len() > 0 {
			wake = append(wake, p.place)
		}
		o.ten.waits.tidy(p.ino, p.key)
	}
	o.promised = nil
	if o.turn != nil {
		o.turn.putting, o.turn = false, nil
		o.ten.waits.tidy(o.ino, o.keys[0])
	}
	if o.isPut() {
		o.sess.outOfLogLocked(o)
	}
	return wake
}

func (o *op) endedBy() error {
	o.ten.mu.Lock()
	defer o.ten.mu.Unlock()
	return o.ended
}

// cancel ends the operation with why where it waits. One that was proposed is
// finished first: it then ends with its true outcome, or with why where it
// changed nothing. Those who waited behind a put or lock that leaves may go.
func (o *op) cancel(why error) {
	t := o.ten
	t.mu.Lock()
	if o.state == opDone || o.ended != nil {
		t.mu.Unlock()
		return
	}
	o.ended = why
	waiting := o.state == opWaiting
	if waiting {
		t.waits.leave(o)
		o.state = opDone
		o.refusedLocked()
	}
	t.mu.Unlock()
	if !waiting {
		return
	}
	o.fail(why) // its request goes with the answer
	if o.isPut() {
		t.passPut(o)
	}
	if o.lock() != nil {
		t.wakeLocks(o.ino)
	}
}

// start begins an operation for session s. done is called exactly once, maybe
// before start returns. What it returns, where that is not nil, ends the wait.
func (t *tenure) start(p *peer, s *session, req *wire.Request, done func(*wire.Response)) canceller {
	if !t.vol.enter() {
		done(failure(gearsfs.ErrClosed))
		return nil
	}
	defer t.vol.leave()
	if why := t.ended(); why != nil {
		done(failure(why))
		return nil
	}
	switch kind := req.Kind.(type) {
	case *wire.Request_Change:
		return t.startChange(s, kind.Change, done)
	case *wire.Request_Query:
		return t.startQuery(p, s, kind.Query, replica.Vouch{Member: gearsfs.MemberID(req.Voucher), Term: req.VouchTerm}, done)
	case *wire.Request_Goodbye:
		t.endSession(s, true, func(err error) {
			resp := &wire.Response{}
			if err != nil {
				resp = failure(err)
			}
			done(resp)
		})
	default:
		done(failure(gearsfs.ErrUnknownOp))
	}
	return nil
}

// startChange sends a command on its way.
func (t *tenure) startChange(s *session, ch *wire.Change, done func(*wire.Response)) canceller {
	cmd := ch.GetCommand()
	if cmd == nil {
		done(failure(gearsfs.ErrUnknownOp))
		return nil
	}
	cmd.SessionMinted, cmd.SessionSalt = uint64(s.id.Minted), s.id.Salt
	cmd.Uid, cmd.Gids, cmd.Checked = s.caller.UID, s.caller.GIDs, s.caller.Checked
	o := &op{ten: t, sess: s, epoch: s.epoch.Load(), change: ch, done: done, path: ch.Path}
	if err := t.vol.space.admit(cmd); err != nil {
		t.vol.group.Reclaim()
		o.refuse(err)
		return nil
	}
	if !s.near.Load() {
		if t.vol.payloads.Refers(cmd) {
			o.fail(gearsfs.ErrInvalid.Because("only nodes of the volume name extents"))
			return nil
		}
		if s.uploads.push(o) {
			return o
		}
	}
	return t.launch(o)
}

// launch sends an operation on its way, as if it had just come.
func (t *tenure) launch(o *op) canceller {
	if o.peek != nil {
		return t.startPeek(o)
	}
	switch c := o.change.Command.Op.(type) {
	case *wire.Command_Put:
		return t.startPut(o, c.Put)
	case *wire.Command_Take:
		return t.startTake(o, c.Take)
	case *wire.Command_Transact:
		return t.startTransact(o)
	case *wire.Command_Configure, *wire.Command_Update, *wire.Command_Move, *wire.Command_CopyFile:
		if err := t.resolveAll(o); err != nil {
			o.refuse(err)
			return nil
		}
		t.startPlain(o)
	case *wire.Command_Settle:
		t.startSettle(o, c.Settle)
	case *wire.Command_Unlink:
		t.proposeUnlink(o, c.Unlink.Dir, c.Unlink.Name, &c.Unlink.OpenIno, &c.Unlink.Holders)
	case *wire.Command_Rename:
		t.proposeUnlink(o, c.Rename.NewDir, c.Rename.NewName, &c.Rename.OpenIno, &c.Rename.Holders)
	case *wire.Command_Lock:
		return t.startLock(o, c.Lock)
	case *wire.Command_SetQuota:
		o.then = func(answer *wire.Answer, err error) {
			if err == nil && answer.Count != 0 {
				t.countQuotas()
			}
			o.then = nil
			o.answered(answer, err)
		}
		t.submit(o)
	case *wire.Command_Write, *wire.Command_Save, *wire.Command_CopyRange, *wire.Command_Make, *wire.Command_Link, *wire.Command_SetAttr,
		*wire.Command_Allocate, *wire.Command_SetXattr, *wire.Command_SetRemote:
		t.submit(o.byItself()...)
	case *wire.Command_Confirm: // has the answer of another command under its number
		o.asking = t.toAsk(o, false)
		t.submit(o)
	default: // what only the node itself may propose, and what it does not know
		o.fail(gearsfs.ErrUnknownOp)
	}
	return nil
}

// proposeUnlink proposes what may remove the last name of an inode, naming the
// sessions that have it open. Where the name led elsewhere by the time it was
// applied, the command changed nothing and is proposed again.
func (t *tenure) proposeUnlink(o *op, dir uint64, name string, openIno *uint64, holders *[]uint64) {
	victim := t.victim(dir, name)
	*openIno, *holders = uint64(victim), nil
	var named []*session
	if victim != 0 {
		*holders, named = t.holders(victim)
	}
	o.then = func(answer *wire.Answer, err error) {
		if victim != 0 {
			t.unlinked(victim, named)
		}
		if err == nil && gearsfs.Code(answer.Code) == gearsfs.ErrStale.Code && t.victim(dir, name) != victim {
			t.proposeUnlink(o, dir, name, openIno, holders)
			return
		}
		o.then = nil
		o.answered(answer, err)
	}
	t.submit(o)
}

// victim is the inode that a name leads to, 0 where it leads nowhere.
func (t *tenure) victim(dir uint64, name string) gearsfs.Ino {
	attr, err := t.vol.machine.Lookup(gearsfs.Ino(dir), name, gearsfs.Root)
	if err != nil {
		return 0 // the command will say why
	}
	return attr.Ino
}
