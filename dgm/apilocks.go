package dgm

import (
	"context"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// The kinds of wire.Lock.
const (
	lockNone = iota
	lockRead
	lockWrite
)

func lockToWire(ino gearsfs.Ino, l gearsfs.FileLock) *wire.Lock {
	kind := uint32(lockRead)
	if l.Write {
		kind = lockWrite
	}
	return &wire.Lock{Ino: uint64(ino), Owner: l.Owner, Flock: l.Flock, Kind: kind, Start: l.Start, End: l.End, Pid: l.PID}
}

func (a api) setLock(ctx context.Context, lock *wire.Lock, noWait bool) error {
	_, err := a.change(ctx, &wire.Change{Fast: true, NoWait: noWait, Command: &wire.Command{Op: &wire.Command_Lock{Lock: lock}}})
	return err
}

// Lock implements Locks.
func (a api) Lock(ctx context.Context, ino gearsfs.Ino, l gearsfs.FileLock, noWait bool) error {
	return a.setLock(ctx, lockToWire(ino, l), noWait)
}

// Unlock implements Locks.
func (a api) Unlock(ctx context.Context, ino gearsfs.Ino, l gearsfs.FileLock) error {
	lock := lockToWire(ino, l)
	lock.Kind = lockNone
	return a.setLock(ctx, lock, true)
}

// LockInTheWay implements Locks.
func (a api) LockInTheWay(ctx context.Context, ino gearsfs.Ino, l gearsfs.FileLock) (*gearsfs.FileLock, error) {
	resp, err := a.fast(ctx, &wire.Query{Op: &wire.Query_Lock{Lock: lockToWire(ino, l)}})
	if err != nil || resp.Lock == nil {
		return nil, err
	}
	held := resp.Lock
	return &gearsfs.FileLock{
		Owner: held.Owner, Flock: held.Flock, Write: held.Kind == lockWrite, Start: held.Start, End: held.End, PID: held.Pid, Mine: resp.Mine,
	}, nil
}
