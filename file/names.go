package file

import (
	"github.com/gearsfs/gearsfs/gears"
	"github.com/gearsfs/gearsfs/wire"
)

func (m *Machine) applyMake(c *context, op *wire.Make) *wire.Answer {
	return m.refuse(gears.ErrUnsupported)
}

func (m *Machine) applyLink(c *context, op *wire.Link) *wire.Answer {
	return m.refuse(gears.ErrUnsupported)
}

func (m *Machine) applyUnlink(c *context, op *wire.Unlink) *wire.Answer {
	return m.refuse(gears.ErrUnsupported)
}

func (m *Machine) applyRename(c *context, op *wire.Rename) *wire.Answer {
	return m.refuse(gears.ErrUnsupported)
}

func (m *Machine) applySetAttr(c *context, op *wire.SetAttr) *wire.Answer {
	return m.refuse(gears.ErrUnsupported)
}

func (m *Machine) applySetXattr(c *context, op *wire.SetXattr) *wire.Answer {
	return m.refuse(gears.ErrUnsupported)
}

func (m *Machine) applyRelease(c *context, op *wire.Release) *wire.Answer {
	return m.refuse(gears.ErrUnsupported)
}

func (m *Machine) applyWrite(c *context, op *wire.Write) *wire.Answer {
	return m.refuse(gears.ErrUnsupported)
}

func (m *Machine) applyAllocate(c *context, op *wire.Allocate) *wire.Answer {
	return m.refuse(gears.ErrUnsupported)
}

// findTarget returns the inode that a command is about: nil where the name
// does not exist in an existing directory. Errors: gears.ErrStale (no such
// inode), ErrNotFound (no such directory), ErrNotDir, ErrAccess (directory may
// not be searched), ErrNameTooLong.
func (m *Machine) findTarget(c *context, t *wire.Target) (*node, error) {
	return nil, gears.ErrUnsupported
}

// mayMakeFile checks whether makeFile will succeed: a command calls it among
// its checks, before it changes anything.
func (m *Machine) mayMakeFile(c *context, t *wire.Target) error {
	return gears.ErrUnsupported
}

// makeFile makes the regular file t.Dir/t.Name, which must not exist and for
// which mayMakeFile must have returned nil.
func (m *Machine) makeFile(c *context, t *wire.Target, mode uint32) (*node, error) {
	return nil, gears.ErrUnsupported
}

// access checks that the caller may use n as want says, a sum of mayRead,
// mayWrite and mayExec. It returns gears.ErrAccess.
func (m *Machine) access(c *context, n *node, want uint32) error {
	return gears.ErrUnsupported
}

// attr returns what stat shows of n.
func (m *Machine) attr(n *node) (*wire.Attr, error) {
	return nil, gears.ErrUnsupported
}

// releaseOrphans lets go of every nameless inode that a session has open.
func (m *Machine) releaseOrphans(c *context, id gears.SessionID) error {
	return gears.ErrUnsupported
}

const (
	mayExec  = 1
	mayWrite = 2
	mayRead  = 4
)

const modeDir = 0o040000
