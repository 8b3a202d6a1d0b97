-- Version 3.

-- step: candidates
-- What relays say of themselves that do not lead and could not: it is written every few seconds while that is so.
create table {{.Candidates}} (
    name   text        not null,
    pid    integer     not null,
    stream text        not null,
    reason text        not null,
    since  timestamptz not null,
    at     timestamptz not null,
    constraint {{.CandidateKey}} primary key (name, pid)
);

comment on table {{.Candidates}} is 'Relays of the outbox that could not lead, and why. Rows of relays that are gone are removed by others.';
comment on column {{.Candidates}}.pid is 'The session''s: two relays may have one name.';
comment on column {{.Candidates}}.reason is 'Why the relay could not lead, since "since", as it last said at "at".';

-- step: privileges of the candidates
-- Who may write what the leader records may write this: a relay that was let in before needs no new GRANT.
do $$
declare
    role text;
begin
    for role in
        select distinct case acl.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(acl.grantee)) end
          from pg_class c, aclexplode(c.relacl) acl
         where c.oid = {{.RelayLiteral}}::regclass and acl.privilege_type = 'INSERT' and acl.grantee <> c.relowner
    loop
        execute 'grant select, insert, update, delete on table ' || {{.CandidatesLiteral}} || ' to ' || role;
    end loop;
end
$$;
