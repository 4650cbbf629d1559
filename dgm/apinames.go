package dgm

import (
	"context"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

func (a api) queryAttr(ctx context.Context, q *wire.Query) (gearsfs.Attr, error) {
	resp, err := a.fast(ctx, q)
	if err != nil {
		return gearsfs.Attr{}, err
	}
	return attrFromWire(resp.GetAnswer().GetAttr()), nil
}

// Lookup implements Names.
func (a api) Lookup(ctx context.Context, dir gearsfs.Ino, name string) (gearsfs.Attr, error) {
	return a.queryAttr(ctx, &wire.Query{Op: &wire.Query_Lookup{Lookup: &wire.Lookup{Dir: uint64(dir), Name: name}}})
}

// Resolve implements Names.
func (a api) Resolve(ctx context.Context, path string, follow bool) (gearsfs.Attr, error) {
	if len(path) > gearsfs.PathBytesMax {
		return gearsfs.Attr{}, gearsfs.ErrNameTooLong
	}
	return a.queryAttr(ctx, &wire.Query{Op: &wire.Query_Resolve{Resolve: &wire.Resolve{Path: path, Follow: follow}}})
}

// GetAttr implements Names.
func (a api) GetAttr(ctx context.Context, ino gearsfs.Ino) (gearsfs.Attr, error) {
	return a.queryAttr(ctx, &wire.Query{Op: &wire.Query_GetAttr{GetAttr: uint64(ino)}})
}

// SetAttr implements Names.
func (a api) SetAttr(ctx context.Context, ino gearsfs.Ino, s SetAttr) (gearsfs.Attr, error) {
	return a.applyAttr(ctx, &wire.Command{Op: &wire.Command_SetAttr{SetAttr: setAttr(ino, &s)}})
}

func setAttr(ino gearsfs.Ino, s *SetAttr) *wire.SetAttr {
	op := &wire.SetAttr{
		Ino: uint64(ino), Mode: s.Mode, Uid: s.UID, Gid: s.GID, Size: s.Size,
		Atime: setTime(s.Atime), Mtime: setTime(s.Mtime), Ctime: setTime(s.Ctime),
	}
	if s.Base != nil {
		base := uint64(*s.Base)
		op.Base = &base
	}
	return op
}

// Make implements Names.
func (a api) Make(ctx context.Context, dir gearsfs.Ino, name string, m Make) (gearsfs.Attr, error) {
	cmd, err := makeOp(dir, name, &m)
	if err != nil {
		return gearsfs.Attr{}, err
	}
	return a.applyAttr(ctx, cmd)
}

func makeOp(dir gearsfs.Ino, name string, m *Make) (*wire.Command, error) {
	if err := gearsfs.CheckName(name); err != nil {
		return nil, err
	}
	return &wire.Command{Op: &wire.Command_Make{Make: &wire.Make{
		Dir: uint64(dir), Name: name, Mode: m.Mode, Rdev: m.Rdev, Target: m.Target, Open: m.Open, Uid: m.UID, Gid: m.GID,
		Umask: m.Umask,
	}}}, nil
}

// Link implements Names.
func (a api) Link(ctx context.Context, ino, dir gearsfs.Ino, name string) (gearsfs.Attr, error) {
	if err := gearsfs.CheckName(name); err != nil {
		return gearsfs.Attr{}, err
	}
	return a.applyAttr(ctx, &wire.Command{Op: &wire.Command_Link{Link: &wire.Link{
		Ino: uint64(ino), Dir: uint64(dir), Name: name,
	}}})
}

// Unlink implements Names.
func (a api) Unlink(ctx context.Context, dir gearsfs.Ino, name string) error {
	return a.applyOnly(ctx, &wire.Command{Op: &wire.Command_Unlink{Unlink: &wire.Unlink{Dir: uint64(dir), Name: name}}})
}

// Rmdir implements Names.
func (a api) Rmdir(ctx context.Context, dir gearsfs.Ino, name string) error {
	return a.applyOnly(ctx, &wire.Command{Op: &wire.Command_Unlink{
		Unlink: &wire.Unlink{Dir: uint64(dir), Name: name, IsDir: true},
	}})
}

// Rename implements Names.
func (a api) Rename(ctx context.Context, r Rename) error {
	if err := gearsfs.CheckName(r.NewName); err != nil {
		return err
	}
	return a.applyOnly(ctx, &wire.Command{Op: &wire.Command_Rename{Rename: &wire.Rename{
		Dir: uint64(r.Dir), Name: r.Name, NewDir: uint64(r.NewDir), NewName: r.NewName, Flags: r.Flags,
	}}})
}

// Readlink implements Names.
func (a api) Readlink(ctx context.Context, ino gearsfs.Ino) (string, error) {
	resp, err := a.fast(ctx, &wire.Query{Op: &wire.Query_Readlink{Readlink: uint64(ino)}})
	if err != nil {
		return "", err
	}
	return resp.Text, nil
}

// ReadDir implements Names.
func (a api) ReadDir(ctx context.Context, dir gearsfs.Ino, after string, max int) ([]gearsfs.Entry, error) {
	resp, err := a.fast(ctx, &wire.Query{Op: &wire.Query_ReadDir{
		ReadDir: &wire.ReadDir{Dir: uint64(dir), After: after, Max: uint32(min(max, gearsfs.BatchRecordsMax))},
	}})
	if err != nil {
		return nil, err
	}
	entries := make([]gearsfs.Entry, len(resp.Entries))
	for i, e := range resp.Entries {
		entries[i] = gearsfs.Entry{Name: e.Name, Attr: attrFromWire(e.Attr)}
	}
	return entries, nil
}

// Parent implements Names.
func (a api) Parent(ctx context.Context, dir gearsfs.Ino) (gearsfs.Ino, error) {
	resp, err := a.fast(ctx, &wire.Query{Op: &wire.Query_Parent{Parent: uint64(dir)}})
	if err != nil {
		return 0, err
	}
	return gearsfs.Ino(resp.Number), nil
}

// GetXattr implements Names.
func (a api) GetXattr(ctx context.Context, ino gearsfs.Ino, name string) ([]byte, error) {
	resp, err := a.fast(ctx, &wire.Query{Op: &wire.Query_GetXattr{GetXattr: &wire.GetXattr{Ino: uint64(ino), Name: name}}})
	if err != nil {
		return nil, err
	}
	return resp.Data, nil
}

// SetXattr implements Names.
func (a api) SetXattr(ctx context.Context, ino gearsfs.Ino, name string, value []byte, flags uint32) error {
	switch {
	case name == "":
		return gearsfs.ErrRange
	case len(name) > gearsfs.XattrNameMax:
		return gearsfs.ErrRange.Because("an attribute's name has at most %d bytes", gearsfs.XattrNameMax)
	case len(value) > gearsfs.XattrBytesMax:
		return gearsfs.ErrTooBig.Because("an attribute has at most %d bytes", gearsfs.XattrBytesMax)
	}
	return a.applyOnly(ctx, &wire.Command{Op: &wire.Command_SetXattr{SetXattr: &wire.SetXattr{
		Ino: uint64(ino), Name: name, Value: value, Flags: flags,
	}}})
}

// ListXattr implements Names.
func (a api) ListXattr(ctx context.Context, ino gearsfs.Ino) ([]string, error) {
	resp, err := a.fast(ctx, &wire.Query{Op: &wire.Query_ListXattr{ListXattr: uint64(ino)}})
	if err != nil {
		return nil, err
	}
	return resp.Names, nil
}

// RemoveXattr implements Names.
func (a api) RemoveXattr(ctx context.Context, ino gearsfs.Ino, name string) error {
	return a.applyOnly(ctx, &wire.Command{Op: &wire.Command_SetXattr{SetXattr: &wire.SetXattr{
		Ino: uint64(ino), Name: name, Remove: true,
	}}})
}

// StatFS implements Names.
func (a api) StatFS(ctx context.Context, at gearsfs.Ino) (gearsfs.Usage, error) {
	resp, err := a.fast(ctx, &wire.Query{Op: &wire.Query_StatFsAt{StatFsAt: uint64(at)}})
	if err != nil {
		return gearsfs.Usage{}, err
	}
	return usageFromWire(resp.Usage), nil
}

// SetQuota implements Names.
func (a api) SetQuota(ctx context.Context, dir gearsfs.Ino, set SetQuota) error {
	_, err := a.change(ctx, &wire.Change{Command: &wire.Command{Op: &wire.Command_SetQuota{SetQuota: &wire.SetQuota{
		Dir: uint64(dir), Bytes: set.Bytes, Inodes: set.Inodes, Remove: set.Remove,
	}}}})
	return err
}

// Quota implements Names.
func (a api) Quota(ctx context.Context, dir gearsfs.Ino) (gearsfs.Quota, error) {
	resp, err := a.query(ctx, &wire.Query{Op: &wire.Query_Quota{Quota: uint64(dir)}})
	if err != nil {
		return gearsfs.Quota{}, err
	}
	q := resp.GetQuota()
	return gearsfs.Quota{
		Bytes: q.GetLimitBytes(), Inodes: q.GetLimitInodes(), BytesUsed: q.GetBytes(), InodesUsed: q.GetInodes(), Counting: q.GetCounting(),
	}, nil
}

// Open implements Content.
func (a api) Open(ctx context.Context, ino gearsfs.Ino) (gearsfs.Attr, error) {
	return a.queryAttr(ctx, &wire.Query{Op: &wire.Query_Open{Open: uint64(ino)}})
}

// Create implements Content.
func (a api) Create(ctx context.Context, dir gearsfs.Ino, name string, m Make) (gearsfs.Attr, error) {
	cmd, err := makeOp(dir, name, &m)
	if err != nil {
		return gearsfs.Attr{}, err
	}
	resp, err := a.call(ctx, &wire.Request{Kind: &wire.Request_Change{Change: &wire.Change{Fast: true, Open: true, Command: cmd}}})
	if err != nil {
		return gearsfs.Attr{}, err
	}
	made := attrFromWire(resp.Answer.Attr)
	if resp.Opened {
		return made, nil
	}
	attr, err := a.openMade(ctx, made.Ino)
	if err != nil {
		return gearsfs.Attr{Ino: made.Ino}, err
	}
	return attr, nil
}

// openMade is Open, by a request of its own, of what was made just before: where the
// node that leads does not open in the same one, or could not count that.
func (a api) openMade(ctx context.Context, ino gearsfs.Ino) (gearsfs.Attr, error) {
	return a.queryAttr(ctx, &wire.Query{Made: true, Op: &wire.Query_Open{Open: uint64(ino)}})
}

// Release implements Content.
func (a api) Release(ctx context.Context, ino gearsfs.Ino) error {
	_, err := a.fast(ctx, &wire.Query{Op: &wire.Query_Release{Release: uint64(ino)}})
	return err
}

// Read implements Content.
func (a api) Read(ctx context.Context, ino gearsfs.Ino, pos gearsfs.Pos, n int, _ []byte) ([]byte, error) {
	r, err := readOp(ino, pos, n)
	if err != nil {
		return nil, err
	}
	resp, err := a.fast(ctx, &wire.Query{Op: &wire.Query_Read{Read: r}})
	if err != nil {
		return nil, err
	}
	return resp.Data, nil
}

func readOp(ino gearsfs.Ino, pos gearsfs.Pos, n int) (*wire.Read, error) {
	if n < 0 || n > contentBytesMax {
		return nil, gearsfs.ErrInvalid.Because("a read has at most %d bytes", contentBytesMax)
	}
	return &wire.Read{Ino: uint64(ino), Pos: uint64(pos), Length: uint32(n)}, nil
}

// Write implements Content.
func (a api) Write(ctx context.Context, ino gearsfs.Ino, pos gearsfs.Pos, data []byte) (gearsfs.Attr, error) {
	if len(data) > contentBytesMax {
		return gearsfs.Attr{}, gearsfs.ErrInvalid.Because("a write has at most %d bytes", contentBytesMax)
	}
	return a.applyAttr(ctx, &wire.Command{Op: &wire.Command_Write{
		Write: &wire.Write{Ino: uint64(ino), Pos: uint64(pos), Data: data},
	}})
}

// Save implements Content.
func (a api) Save(ctx context.Context, ino gearsfs.Ino, pos gearsfs.Pos, data []byte, s SetAttr) (gearsfs.Attr, error) {
	if len(data) > contentBytesMax {
		return gearsfs.Attr{}, gearsfs.ErrInvalid.Because("a write has at most %d bytes", contentBytesMax)
	}
	return a.applyAttr(ctx, &wire.Command{Op: &wire.Command_Save{Save: &wire.Save{
		Write: &wire.Write{Ino: uint64(ino), Pos: uint64(pos), Data: data}, Set: setAttr(ino, &s),
	}}})
}

// Append implements Content.
func (a api) Append(ctx context.Context, ino gearsfs.Ino, data []byte) (gearsfs.Attr, error) {
	records, err := newRecords(gearsfs.DataKey, []gearsfs.NewRecord{{Data: data}})
	if err != nil {
		return gearsfs.Attr{}, err
	}
	answer, err := a.change(ctx, &wire.Change{Fast: true, Command: &wire.Command{Op: &wire.Command_Put{Put: &wire.Put{
		Target: &wire.Target{Ino: uint64(ino)}, Key: string(gearsfs.DataKey), Records: records, Append: true,
	}}}})
	if err != nil {
		return gearsfs.Attr{}, err
	}
	return attrFromWire(answer.Attr), nil
}

// zeroedMax is how much of a file one command makes zeros of: each 128 KiB in the
// block store take their time, and all else waits.
const zeroedMax = 256 << 20

// allocKeepSize is FALLOC_FL_KEEP_SIZE: with no other bit nothing becomes zeros.
const allocKeepSize = 0x01

// Allocate implements Content.
func (a api) Allocate(ctx context.Context, ino gearsfs.Ino, pos gearsfs.Pos, n uint64, mode uint32) error {
	zeroes := mode&^allocKeepSize != 0
	if zeroes && n > zeroedMax && n <= gearsfs.FileBytesMax && uint64(pos) <= gearsfs.FileBytesMax-n {
		attr, err := a.GetAttr(ctx, ino)
		if err != nil {
			return err
		}
		for end := attr.Head + gearsfs.Pos(attr.Size); n > zeroedMax && pos < end; pos, n = pos+zeroedMax, n-zeroedMax {
			if err := a.allocate(ctx, ino, pos, zeroedMax, mode); err != nil {
				return err
			}
		}
	}
	return a.allocate(ctx, ino, pos, n, mode)
}

func (a api) allocate(ctx context.Context, ino gearsfs.Ino, pos gearsfs.Pos, n uint64, mode uint32) error {
	return a.applyOnly(ctx, &wire.Command{Op: &wire.Command_Allocate{
		Allocate: &wire.Allocate{Ino: uint64(ino), Pos: uint64(pos), Length: n, Mode: mode},
	}})
}

// CopyRange implements Content.
func (a api) CopyRange(ctx context.Context, c CopyRange) (uint64, gearsfs.Attr, error) {
	answer, err := a.apply(ctx, &wire.Command{Op: &wire.Command_CopyRange{CopyRange: &wire.CopyRange{
		FromIno: uint64(c.From), FromPos: uint64(c.FromPos), Ino: uint64(c.To), Pos: uint64(c.ToPos), Length: c.Length,
	}}})
	if err != nil {
		return 0, gearsfs.Attr{}, err
	}
	return answer.Count, attrFromWire(answer.Attr), nil
}

// Seek implements Content.
func (a api) Seek(ctx context.Context, ino gearsfs.Ino, pos gearsfs.Pos, hole bool) (gearsfs.Pos, error) {
	resp, err := a.fast(ctx, &wire.Query{Op: &wire.Query_Seek{
		Seek: &wire.Seek{Ino: uint64(ino), Pos: uint64(pos), Hole: hole},
	}})
	if err != nil {
		return 0, err
	}
	return gearsfs.Pos(resp.Number), nil
}

// Sync implements Content.
func (a api) Sync(ctx context.Context) error {
	_, err := a.query(ctx, &wire.Query{Op: &wire.Query_Sync{Sync: true}})
	return err
}

// Status implements Node.
func (a api) Status(ctx context.Context) (gearsfs.NodeStatus, error) {
	resp, err := a.query(ctx, &wire.Query{Op: &wire.Query_Status{Status: true}})
	if err != nil {
		return gearsfs.NodeStatus{}, err
	}
	return statusFromWire(resp.Status), nil
}

// Waits implements Node.
func (a api) Waits(ctx context.Context) ([]gearsfs.Wait, error) {
	resp, err := a.query(ctx, &wire.Query{Op: &wire.Query_Waits{Waits: true}})
	if err != nil {
		return nil, err
	}
	waits := make([]gearsfs.Wait, len(resp.Waits))
	for i, w := range resp.Waits {
		waits[i] = waitFromWire(w)
	}
	return waits, nil
}

// SetRemote implements Node.
func (a api) SetRemote(ctx context.Context, name, addrs string) error {
	if err := checkRemote(name, addrs); err != nil {
		return err
	}
	_, err := a.change(ctx, &wire.Change{Command: &wire.Command{Op: &wire.Command_SetRemote{
		SetRemote: &wire.SetRemote{Name: name, Addrs: addrs},
	}}})
	return err
}

// Remotes implements Node.
func (a api) Remotes(ctx context.Context) (map[string]string, error) {
	resp, err := a.query(ctx, &wire.Query{Op: &wire.Query_Remotes{Remotes: true}})
	if err != nil {
		return nil, err
	}
	remotes := make(map[string]string, len(resp.Remotes))
	for _, r := range resp.Remotes {
		remotes[r.Name] = r.Addrs
	}
	return remotes, nil
}

// Watch implements Node.
func (a api) Watch(ctx context.Context, started func(), changed func([]gearsfs.Change)) error {
	var id uint64
	for {
		resp, err := a.fast(ctx, &wire.Query{Op: &wire.Query_Watch{Watch: &wire.Watch{Id: id}}})
		if err != nil {
			return err
		}
		if id == 0 {
			id = resp.Number
			started()
			continue
		}
		changed(changedFromWire(resp.Changed))
	}
}
