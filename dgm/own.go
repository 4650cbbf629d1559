package dgm

import (
	"context"
	"errors"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
)

// What a mount asks most is asked of the state machine itself, without a request and
// an answer. It means the same as the api's method, by way of call.

// ownRead has read called with the own replica's state once that shows what this
// session was told before.
func (l *Local) ownRead(ctx context.Context, read func(m *file.Machine) error) error {
	if err := l.level(ctx); err != nil {
		return err
	}
	if !l.vol.enter() {
		return gearsfs.ErrClosed
	}
	defer l.vol.leave()
	return read(l.vol.machine)
}

// Lookup implements Names.
func (l *Local) Lookup(ctx context.Context, dir gearsfs.Ino, name string) (attr gearsfs.Attr, err error) {
	err = l.ownRead(ctx, func(m *file.Machine) (err error) {
		attr, err = m.Lookup(dir, name, l.as)
		return err
	})
	if errors.Is(err, gearsfs.ErrNotFound) && l.follows() {
		return l.api.Lookup(ctx, dir, name) // it may have been made elsewhere
	}
	return attr, err
}

// GetAttr implements Names.
func (l *Local) GetAttr(ctx context.Context, ino gearsfs.Ino) (attr gearsfs.Attr, err error) {
	err = l.ownRead(ctx, func(m *file.Machine) (err error) {
		attr, err = m.GetAttr(ino)
		return err
	})
	return attr, err
}

// GetXattr implements Names.
func (l *Local) GetXattr(ctx context.Context, ino gearsfs.Ino, name string) (value []byte, err error) {
	err = l.ownRead(ctx, func(m *file.Machine) (err error) {
		value, err = m.GetXattr(ino, name, l.as)
		return err
	})
	return value, err
}

// ReadDir implements Names.
func (l *Local) ReadDir(ctx context.Context, dir gearsfs.Ino, after string, max int) (entries []gearsfs.Entry, err error) {
	if after == "" && l.follows() {
		return l.api.ReadDir(ctx, dir, after, max) // which asks the leader how far it is
	}
	err = l.ownRead(ctx, func(m *file.Machine) (err error) {
		entries, err = m.ReadDir(dir, after, min(max, gearsfs.BatchRecordsMax), l.as)
		return err
	})
	return entries, err
}
