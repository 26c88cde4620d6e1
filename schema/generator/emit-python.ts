/**
 * Writes the generated part of the Python client: a TypedDict for every object, and a method for every command.
 * What does the work is client/python/base.py, which stands in front of it.
 */

import type { CommandDefinition, Member, Model, TypeDefinition, TypeUse } from './model.ts';

/** Words that Python keeps for itself. */
const KEYWORDS = new Set([
  'from',
  'import',
  'class',
  'pass',
  'global',
  'lambda',
  'in',
  'is',
  'not',
  'and',
  'or',
  'if',
]);

/** "node-name" → "node_name"; a keyword gets an underscore behind it. */
function pythonName(name: string): string {
  const plain = name.replaceAll('-', '_');
  return KEYWORDS.has(plain) ? `${plain}_` : plain;
}

function pythonType(model: Model, use: TypeUse): string {
  switch (use.kind) {
    case 'str':
      return 'str';
    case 'bool':
      return 'bool';
    case 'null':
      return 'None';
    case 'number':
      return 'float';
    case 'int':
      return 'int';
    case 'any':
      return 'Any';
    case 'list':
      return `List[${pythonType(model, use.element)}]`;
    case 'named': {
      const type = model.types.get(use.name);
      if (type?.kind === 'enum') return 'str';
      return type?.kind === 'object' && type.tag === null ? `'${use.name}'` : 'Any';
    }
  }
}

function typeText(model: Model, type: TypeDefinition): string {
  if (type.kind !== 'object' || type.tag !== null || type.implicit) return '';
  const members = type.members.map(({ name, use }) => `'${name}': ${pythonType(model, use)}`);
  const lines = members.map((member) => `    ${member},\n`).join('');
  return `# ${type.description}\n${type.name} = TypedDict('${type.name}', {\n${lines}}, total=False)\n\n`;
}

function parameter(model: Model, member: Member): string {
  const hint = pythonType(model, member.use);
  return `        ${pythonName(member.name)}: ${hint}${member.optional ? ' = _UNSET' : ''},\n`;
}

function methodText(model: Model, command: CommandDefinition): string {
  const type = command.argumentType === null ? undefined : model.types.get(command.argumentType);
  const members = type?.kind === 'object' ? type.members : [];
  const open = type !== undefined && (type.kind !== 'object' || type.tag !== null);
  const parameters = [...members].sort((a, b) => Number(a.optional) - Number(b.optional));
  const star = parameters.length === 0 ? '' : '        *,\n';
  const more = open ? '        **more: Any,\n' : '';
  const names = parameters.map(({ name }) => `'${pythonName(name)}': ${pythonName(name)}`).join(', ');
  const table = parameters.map(({ name }) => name).filter((name) => name.includes('_'));
  // Few names have an underscore of their own in QMP; they are put in as they are.
  const given =
    table.length === 0 ? `_arguments({${names}}, ${open ? 'more' : '{}'})` : rawArguments(parameters);
  const ret = command.returns === null ? 'Any' : pythonType(model, command.returns);
  const describe = members
    .filter(({ description }) => description !== '')
    .map(({ name, description }) => `        {${pythonName(name)}}: ${description}`.replace(/[{}]/g, ''));
  const doc = [
    command.description,
    ...(describe.length > 0 ? ['', ...describe.map((line) => line.trimEnd())] : []),
  ];
  const docText =
    doc.length === 1
      ? `        """${doc[0]}"""\n`
      : `        """${doc[0]}\n${doc.slice(1).join('\n')}\n        """\n`;
  const args = type === undefined ? '' : `, ${given}`;
  return (
    `    async def ${pythonName(command.name)}(\n        self,\n${star}${parameters.map((member) => parameter(model, member)).join('')}${more}    ) -> ${ret}:\n` +
    `${docText}        return await self.execute('${command.name}'${args})\n\n`
  );
}

function rawArguments(members: readonly Member[]): string {
  const pairs = members.map(({ name }) => `('${name}', ${pythonName(name)})`).join(', ');
  return `{name: value for name, value in (${pairs},) if value is not _UNSET}`;
}

/** The whole client: `base` is the text of base.py. */
export function emitPython(model: Model, base: string): string {
  const types = [...model.types.values()].map((type) => typeText(model, type)).join('');
  const methods = model.commands.map((command) => methodText(model, command)).join('');
  const events = model.events.map(({ name, description }) => `    # ${name}: ${description}\n`).join('');
  return (
    `${base}\n\n# ---- Generated ${'-'.repeat(60)}\n\n${types}\n` +
    `class Client(BaseClient):\n    """Every command as a method. Events that arrive:\n\n${events.replaceAll('    # ', '    ')}    """\n\n${methods}`.trimEnd() +
    '\n'
  );
}
