package payload

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

// How the bytes of extents go from member to member.
const (
	spreadPatience = 2 * time.Second // for those that a majority can do without
	lendPatience   = 5 * time.Second // of one member, for a block
)

// The time between two tries to send to a member, doubled from the one to the
// other, and jittered.
const (
	sendPauseMin = 20 * time.Millisecond
	sendPauseMax = time.Second
)

// ask has a member answer a request whose body is encoded already.
func (k *Keeper) ask(ctx context.Context, to gearsfs.MemberID, body []byte) (*wire.Response, error) {
	return k.cfg.Members.Carry(ctx, to, func(conn *transport.Conn, done func([]byte, error)) *transport.Pending {
		return conn.Start(body, done)
	})
}

func blocksRequest(op *wire.Blocks) ([]byte, error) {
	return (&wire.Request{Kind: &wire.Request_Blocks{Blocks: op}}).MarshalVT()
}

// spread brings what was appended here to the other members, all at once, and
// returns when it is on the disks of a majority of the voters, this node's included
// where it votes; while they change, of the old ones and of the new ones. Who is
// not reached, or is slow, fetches it later.
func (k *Keeper) spread(ctx context.Context, extents []gearsfs.Extent, payload []byte) error {
	load, err := newCargo(extents, payload)
	if err != nil {
		return err
	}
	asked := ctx
	ctx, cancel := context.WithTimeoutCause(k.cfg.Busy, gearsfs.SessionTTL,
		gearsfs.ErrNoNode.Because("no majority of the nodes can be reached with the bytes"))
	quorums := k.cfg.Members.Quorums()
	others := k.cfg.Members.Others()
	stored := make(chan gearsfs.MemberID, len(others)+1)
	failed := make(chan error, 1)
	var spreading sync.WaitGroup
	for _, id := range others {
		spreading.Go(func() { // ends with ctx
			if k.send(ctx, id, load) {
				stored <- id
			}
		})
	}
	spreading.Go(func() { // ends with the disk's answer
		if err := k.store.Sync(); err != nil {
			failed <- err
			return
		}
		stored <- k.cfg.Self
	})
	for have := []gearsfs.MemberID(nil); !reached(quorums, have); {
		select {
		case id := <-stored:
			have = append(have, id)
		case err := <-failed:
			cancel()
			return err
		case <-ctx.Done():
			defer cancel()
			return context.Cause(ctx)
		case <-asked.Done():
			cancel()
			return asked.Err()
		}
	}
	late := time.AfterFunc(spreadPatience, cancel)
	if !k.cfg.Node.Spawn(func() {
		spreading.Wait()
		late.Stop()
		cancel()
		load.release()
	}) {
		cancel()
	}
	return nil
}

// reached says whether a majority of each set of voters is among have.
func reached(quorums [][]gearsfs.MemberID, have []gearsfs.MemberID) bool {
	return !slices.ContainsFunc(quorums, func(voters []gearsfs.MemberID) bool {
		n := 0
		for _, id := range voters {
			if slices.Contains(have, id) {
				n++
			}
		}
		return n <= len(voters)/2
	})
}

// send brings a block to one member and says whether it has it; it tries until
// ctx ends.
func (k *Keeper) send(ctx context.Context, to gearsfs.MemberID, load *cargo) bool {
	pause := sendPauseMin
	for {
		_, err := k.cfg.Members.Carry(ctx, to, load.start)
		if err == nil {
			return true
		}
		if errors.Is(err, gearsfs.ErrNotMember) || errors.Is(err, gearsfs.ErrNoSpace) || errors.Is(err, gearsfs.ErrUnknownOp) {
			return false
		}
		select {
		case <-time.After(pause/2 + rand.N(pause)):
			pause = min(2*pause, sendPauseMax)
		case <-ctx.Done():
			return false
		}
	}
}

// dropAway tells the other members of what drop gives back. Who misses it keeps
// some pages that nobody needs.
func (k *Keeper) dropAway(extents []gearsfs.Extent) {
	if len(extents) == 0 || k.cfg.Members.Alone() {
		return
	}
	body, err := blocksRequest(&wire.Blocks{Drop: file.ExtentsToWire(extents)})
	if err != nil {
		return
	}
	for _, id := range k.cfg.Members.Others() {
		k.cfg.Node.Spawn(func() {
			ctx, cancel := context.WithTimeout(k.cfg.Root, spreadPatience)
			defer cancel()
			k.ask(ctx, id, body) //nolint:errcheck // see above
		})
	}
}

// fetch brings what an extent stores here from another member that has it.
func (k *Keeper) fetch(ctx context.Context, e gearsfs.Extent) error {
	others := k.cfg.Members.Others()
	if i := slices.Index(others, e.Origin); i > 0 {
		others[0], others[i] = others[i], others[0] // it has had it, if anyone
	}
	body, err := blocksRequest(&wire.Blocks{Lend: extentToWire(e)})
	if err != nil {
		return err
	}
	failed := error(gearsfs.ErrNoNode.Because("no other node has it"))
	for _, id := range others {
		err := k.borrow(ctx, id, body, e)
		if err == nil || ctx.Err() != nil {
			return err
		}
		failed = err
	}
	return failed
}

func (k *Keeper) borrow(ctx context.Context, from gearsfs.MemberID, body []byte, e gearsfs.Extent) error {
	ctx, cancel := context.WithTimeout(ctx, lendPatience)
	defer cancel()
	resp, err := k.ask(ctx, from, body)
	if err != nil {
		return err
	}
	return k.store.Store(e, resp.Data)
}

// Serve answers another member about blocks; done is called once. It may write to
// the disk, and does not wait for it.
func (k *Keeper) Serve(op *wire.Blocks, done func(*wire.Response, error)) {
	if err := k.serveOp(op, done); err != nil {
		done(nil, err)
	}
}

// serveOp has done called, now or later, unless it returns an error.
func (k *Keeper) serveOp(op *wire.Blocks, done func(*wire.Response, error)) error {
	switch {
	case op.Pending:
		segments, err := k.pending.list()
		if err == nil {
			done(&wire.Response{Segments: segments}, nil)
		}
		return err
	case op.Lend != nil:
		e, err := extentFromWire(op.Lend)
		if err != nil {
			return err
		}
		return k.later(func() error {
			data, err := k.store.ReadStored(e)
			if err == nil {
				done(&wire.Response{Data: data}, nil)
			}
			return err
		}, done)
	case len(op.Drop) > 0:
		extents, err := extentsFromWire(op.Drop)
		if err != nil {
			return err
		}
		k.mu.Lock()
		k.ready = append(k.ready, extents...)
		k.freeLocked()
		k.mu.Unlock()
		done(&wire.Response{}, nil)
		return nil
	}
	extents, err := extentsFromWire(op.Store)
	if err != nil {
		return err
	}
	if k.cfg.Node.Full() {
		return gearsfs.ErrNoSpace
	}
	data := op.Data
	for _, e := range extents {
		if e.Inline() || e.Size > uint64(len(data)) {
			return gearsfs.ErrProtocol.Because("a block of %d bytes comes with %d", e.Size, len(data))
		}
		if err := k.store.Store(e, data[:e.Size]); err != nil {
			return err
		}
		data = data[e.Size:]
	}
	return k.later(func() error {
		err := k.store.Sync()
		if err == nil {
			done(&wire.Response{}, nil)
		}
		return err
	}, done)
}

// later runs what waits for the disk on a goroutine of its own, and has its error
// told.
func (k *Keeper) later(f func() error, done func(*wire.Response, error)) error {
	if !k.cfg.Node.Spawn(func() {
		if err := f(); err != nil {
			done(nil, err)
		}
	}) {
		return gearsfs.ErrClosed
	}
	return nil
}
