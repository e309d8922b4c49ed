-- The file system and its snapshots are gone, or, where one of them is in use, all are as they were.
-- Returns an error number, and what it is about.
local arguments = ...
local fs, EBUSY, EEXIST, EAGAIN =
  arguments["fs"], arguments["EBUSY"], arguments["EEXIST"], arguments["EAGAIN"]

for child in zfs.list.children(fs) do
  return { errno = EEXIST, object = child }
end
local snapshots = {}
for snapshot in zfs.list.snapshots(fs) do
  local errno = zfs.check.destroy(snapshot)
  if errno ~= 0 then
    return { errno = errno, object = snapshot }
  end
  snapshots[#snapshots + 1] = snapshot
end
if #snapshots > 0 then
  -- A file system with snapshots can't be destroyed, mounted or not, so its check says nothing. That
  -- of a rollback fails where it is mounted, be it in another mount namespace.
  local errno = zfs.check.rollback(fs)
  if errno == EBUSY or errno == EAGAIN then
    return { errno = errno, object = fs }
  end
end
for _, snapshot in ipairs(snapshots) do
  zfs.sync.destroy(snapshot)
end
return { errno = zfs.sync.destroy(fs), object = fs }
