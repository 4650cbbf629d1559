package mount

import (
	"encoding/binary"

	"github.com/hanwen/go-fuse/v2/fuse"
)

var _ fuse.RawFileSystem = entrance{}

// Lookups and reads.

func (e entrance) Lookup(cancel <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	c := e.begin(in, cancel)
	defer c.leave()
	st := c.server.Lookup(cancel, in, name, out)
	if st == fuse.OK && isControl(out.NodeId) && c.keeper != nil {
		if p, ok := c.control.get(out.NodeId); ok {
			c.effect(nodeEffect(out.NodeId, p))
		}
	}
	return c.answer(st)
}

func (e entrance) Forget(node, lookups uint64) {
	e.server.Forget(node, lookups)
	if e.keeper == nil || !isControl(node) {
		return
	}
	if _, ok := e.control.get(node); !ok {
		e.keeper.add(answeredEntry(noRequest, 0, nil), encode(start(effectNodeEnd), node))
	}
}

func (e entrance) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	c := e.begin(&in.InHeader, cancel)
	defer c.leave()
	return c.answer(c.server.GetAttr(cancel, in, out))
}

func (e entrance) Readlink(cancel <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	c := e.begin(in, cancel)
	defer c.leave()
	target, st := c.server.Readlink(cancel, in)
	return target, c.answer(st)
}

func (e entrance) StatFs(cancel <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	c := e.begin(in, cancel)
	defer c.leave()
	return c.server.StatFs(cancel, in, out)
}

func (e entrance) GetXAttr(cancel <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	c := e.begin(in, cancel)
	defer c.leave()
	return c.server.GetXAttr(cancel, in, name, dest)
}

func (e entrance) ListXAttr(cancel <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	c := e.begin(in, cancel)
	defer c.leave()
	return c.server.ListXAttr(cancel, in, dest)
}

func (e entrance) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	c := e.begin(&in.InHeader, cancel)
	defer c.leave()
	return c.server.Lseek(cancel, in, out)
}

func (e entrance) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	c := e.begin(&in.InHeader, cancel)
	defer c.leave()
	return c.server.Fsync(cancel, in)
}

func (e entrance) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	c := e.begin(&in.InHeader, cancel)
	defer c.leave()
	return c.server.FsyncDir(cancel, in)
}

// ReadDir again shows the same again, as the handle remembers what it has shown.
func (e entrance) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	c := e.begin(&in.InHeader, cancel)
	defer c.leave()
	return c.answer(c.server.ReadDir(cancel, in, out))
}

func (e entrance) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	c := e.begin(&in.InHeader, cancel)
	defer c.leave()
	return c.answer(c.server.ReadDirPlus(cancel, in, out))
}

// Read of a file of the control tree moves its handle on, so it is done once.
func (e entrance) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if !isControl(in.NodeId) {
		c := e.begin(&in.InHeader, cancel)
		defer c.leave()
		return c.server.Read(cancel, in, buf)
	}
	c := e.beginOnce(&in.InHeader, cancel, nil)
	defer c.leave()
	if c.known {
		return fuse.ReadResultData(c.reply), c.status
	}
	h := e.handles.get(in.Fh)
	if h == nil {
		return nil, fuse.EBADF
	}
	data, st := h.read(&c.server, cancel, in, buf)
	c.reply = data
	if st = c.answer(st); st != fuse.OK {
		return nil, st
	}
	return fuse.ReadResultData(data), fuse.OK
}

// What opens and closes.

func (c *call) opened(fh uint64, st fuse.Status) fuse.Status {
	if h := c.handles.get(fh); st == fuse.OK && h != nil && c.keeper != nil {
		c.effect(handleEffect(fh, h))
	}
	return c.answer(st)
}

func (e entrance) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	c := e.beginOnce(&in.InHeader, cancel, bytesOf(out))
	defer c.leave()
	if c.known {
		return c.status
	}
	st := c.server.Open(cancel, in, out)
	return c.opened(out.Fh, st)
}

func (e entrance) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	c := e.beginOnce(&in.InHeader, cancel, bytesOf(out))
	defer c.leave()
	if c.known {
		return c.status
	}
	st := c.server.OpenDir(cancel, in, out)
	return c.opened(out.Fh, st)
}

func (e entrance) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	c := e.beginOnce(&in.InHeader, cancel, bytesOf(out))
	defer c.leave()
	if c.known {
		return c.status
	}
	st := c.server.Create(cancel, in, name, out)
	return c.opened(out.Fh, st)
}

func (e entrance) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	c := e.beginOnce(&in.InHeader, cancel, bytesOf(out))
	defer c.leave()
	if c.known {
		return c.status
	}
	st := c.server.Tmpfile(cancel, in, out)
	return c.opened(out.Fh, st)
}

func (e entrance) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	c := e.beginOnce(&in.InHeader, cancel, nil)
	defer c.leave()
	if c.known {
		return c.status
	}
	return c.answer(c.server.Flush(cancel, in))
}

func (e entrance) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	c := e.beginOnce(&in.InHeader, cancel, nil)
	defer c.leave()
	if c.known {
		return
	}
	c.server.Release(cancel, in)
	c.effect(encode(start(effectClosed), in.Fh))
	c.answer(fuse.OK)
}

func (e entrance) ReleaseDir(in *fuse.ReleaseIn) {
	c := e.beginOnce(&in.InHeader, nil, nil)
	defer c.leave()
	if c.known {
		return
	}
	c.server.ReleaseDir(in)
	c.effect(encode(start(effectClosed), in.Fh))
	c.answer(fuse.OK)
}

// What changes the tree and its files.

func (e entrance) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	c := e.beginOnce(&in.InHeader, cancel, bytesOf(out))
	defer c.leave()
	if c.known {
		return c.status
	}
	return c.answer(c.server.SetAttr(cancel, in, out))
}

func (e entrance) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	c := e.beginOnce(&in.InHeader, cancel, bytesOf(out))
	defer c.leave()
	if c.known {
		return c.status
	}
	return c.answer(c.server.Mknod(cancel, in, name, out))
}

func (e entrance) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	c := e.beginOnce(&in.InHeader, cancel, bytesOf(out))
	defer c.leave()
	if c.known {
		return c.status
	}
	return c.answer(c.server.Mkdir(cancel, in, name, out))
}

func (e entrance) Symlink(cancel <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	c := e.beginOnce(in, cancel, bytesOf(out))
	defer c.leave()
	if c.known {
		return c.status
	}
	return c.answer(c.server.Symlink(cancel, in, target, name, out))
}

func (e entrance) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	c := e.beginOnce(&in.InHeader, cancel, bytesOf(out))
	defer c.leave()
	if c.known {
		return c.status
	}
	return c.answer(c.server.Link(cancel, in, name, out))
}

func (e entrance) Unlink(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	c := e.beginOnce(in, cancel, nil)
	defer c.leave()
	if c.known {
		return c.status
	}
	return c.answer(c.server.Unlink(cancel, in, name))
}

func (e entrance) Rmdir(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	c := e.beginOnce(in, cancel, nil)
	defer c.leave()
	if c.known {
		return c.status
	}
	return c.answer(c.server.Rmdir(cancel, in, name))
}

func (e entrance) Rename(cancel <-chan struct{}, in *fuse.RenameIn, name, newName string) fuse.Status {
	c := e.beginOnce(&in.InHeader, cancel, nil)
	defer c.leave()
	if c.known {
		return c.status
	}
	return c.answer(c.server.Rename(cancel, in, name, newName))
}

func (e entrance) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	c := e.beginOnce(&in.InHeader, cancel, nil)
	defer c.leave()
	if c.known {
		return c.status
	}
	return c.answer(c.server.SetXAttr(cancel, in, name, value))
}

func (e entrance) RemoveXAttr(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	c := e.beginOnce(in, cancel, nil)
	defer c.leave()
	if c.known {
		return c.status
	}
	return c.answer(c.server.RemoveXAttr(cancel, in, name))
}

func (e entrance) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	var size [4]byte
	c := e.beginOnce(&in.InHeader, cancel, size[:])
	defer c.leave()
	if c.known {
		return binary.LittleEndian.Uint32(size[:]), c.status
	}
	n, st := c.server.Write(cancel, in, data)
	binary.LittleEndian.PutUint32(size[:], n)
	return n, c.answer(st)
}

func (e entrance) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	c := e.beginOnce(&in.InHeader, cancel, nil)
	defer c.leave()
	if c.known {
		return c.status
	}
	return c.answer(c.server.Fallocate(cancel, in))
}

func (e entrance) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	var size [4]byte
	c := e.beginOnce(&in.InHeader, cancel, size[:])
	defer c.leave()
	if c.known {
		return binary.LittleEndian.Uint32(size[:]), c.status
	}
	n, st := c.server.CopyFileRange(cancel, in)
	binary.LittleEndian.PutUint32(size[:], n)
	return n, c.answer(st)
}

// Locks.

func (e entrance) GetLk(cancel <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	c := e.begin(&in.InHeader, cancel)
	defer c.leave()
	return c.server.GetLk(cancel, in, out)
}

func (e entrance) SetLk(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	c := e.beginOnce(&in.InHeader, cancel, nil)
	defer c.leave()
	if c.known {
		return c.status
	}
	return c.answer(c.server.SetLk(cancel, in))
}

func (e entrance) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	c := e.beginOnce(&in.InHeader, cancel, nil)
	defer c.leave()
	if c.known {
		return c.status
	}
	return c.answer(c.server.SetLkw(cancel, in))
}

// noRequest stands for a request where there is none.
const noRequest = 1<<63 - 1
