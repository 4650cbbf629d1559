package dgm

import (
	"context"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm/internal/payload"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/replica"
	"github.com/gearsfs/gearsfs/wire"
)

// openPayloads opens what keeps the large payloads of the volume at this node.
func (v *Volume) openPayloads() error {
	return v.payloads.Open(payload.Config{
		Self: v.member, Data: v.cfg.Data, Machine: v.machine, FS: v.cfg.BlockFS, Clock: v.cfg.Clock,
		Least: v.cfg.BlockLeast, ScrubBytesPerSecond: v.cfg.ScrubBytesPerSecond, Offline: v.cfg.Offline, Log: v.log,
		Node: payloadNode{v}, Members: payloadNode{v}, Busy: v.busy, Root: v.root, Reads: v.reads,
	})
}

// payloadNode is a Volume as the payloads know it.
type payloadNode struct{ vol *Volume }

var (
	_ payload.Node    = payloadNode{}
	_ payload.Members = payloadNode{}
)

func (n payloadNode) Full() bool             { return n.vol.space.full() }
func (n payloadNode) Spawn(f func()) bool    { return n.vol.spawn(f) }
func (n payloadNode) Fatal(err error)        { n.vol.fatal(err) }
func (n payloadNode) Durable() gearsfs.Index { return n.vol.group.Status().Durable }

// Certain asks as a session of its own.
func (n payloadNode) Certain(ctx context.Context) error {
	l, err := n.vol.Local(Client{Caller: gearsfs.Root, Process: "sweep"})
	if err != nil {
		return err
	}
	defer l.Close() //nolint:errcheck // nothing is left that matters
	_, err = l.ask(ctx, certain(&wire.Query{Op: &wire.Query_Sync{Sync: true}}), true)
	return err
}

// Alone is what the group says, once there is one: nothing is served before.
func (n payloadNode) Alone() bool {
	select {
	case <-n.vol.opened:
		return n.vol.group == nil || n.vol.alone()
	default:
		return true
	}
}

func (n payloadNode) Others() []gearsfs.MemberID    { return n.vol.mesh.Others() }
func (n payloadNode) Quorums() [][]gearsfs.MemberID { return n.vol.group.Quorums() }

func (n payloadNode) Carry(ctx context.Context, to gearsfs.MemberID, start payload.Start) (*wire.Response, error) {
	return n.vol.mesh.Carry(ctx, to, start)
}

// syncedLog is a node's log that tells what is on the disk, before anybody who
// waits for that hears of it.
type syncedLog struct {
	replica.Log
	payloads *payload.Keeper
}

func (l syncedLog) Sync() error {
	upTo := l.Last()
	if err := l.Log.Sync(); err != nil {
		return err
	}
	l.payloads.Durable(upTo)
	return nil
}

// applier is the state machine, and has the payloads seen that are applied.
type applier struct {
	*file.Machine
	payloads *payload.Keeper
}

// Apply implements replica.Machine.
func (a applier) Apply(index, term uint64, e *wire.Entry) ([]*wire.Answer, error) {
	answers, err := a.Machine.Apply(index, term, e)
	if err == nil && answers != nil {
		a.payloads.Named(e.Commands)
	}
	return answers, err
}

// Freed implements file.Observer.
func (v *Volume) Freed(index uint64, extents []gearsfs.Extent) { v.payloads.Freed(index, extents) }

// upload brings the large payloads of a command to where they are kept, and
// returns what then is to be told the command's final answer (Unused).
func (v *Volume) upload(ctx context.Context, cmd *wire.Command) ([]gearsfs.Extent, error) {
	if !v.enter() {
		return nil, gearsfs.ErrClosed
	}
	defer v.leave()
	return v.payloads.Upload(ctx, cmd)
}

// fill has done called with a response that lacks bytes of its records when it
// has them.
func (v *Volume) fill(resp *wire.Response, done func(*wire.Response)) {
	v.payloads.Fill(resp, func(resp *wire.Response, err error) {
		if err != nil {
			resp = failure(err)
		}
		done(resp)
	})
}

// serveBlocks answers another member about blocks.
func (v *Volume) serveBlocks(op *wire.Blocks, done func(*wire.Response)) {
	v.payloads.Serve(op, func(resp *wire.Response, err error) {
		if err != nil {
			resp = failure(err)
		}
		done(resp)
	})
}
