// What both fixtures offer: the tools, resources and prompts that the suite asks for by name. The two generations of
// the SDK register them in the same way, except for what `dialect` bridges.
import { setTimeout as pause } from 'node:timers/promises';
import { z } from 'zod';

// One red pixel, and one millisecond of silence.
const PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==';
const WAV = 'UklGRiwAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQgAAACAgICAgICAgA==';

export const text = value => ({ type: 'text', text: value });
const image = { type: 'image', data: PNG, mimeType: 'image/png' };
const answer = (...content) => () => ({ content });
const document = (uri, mimeType, value) => ({ uri, mimeType, text: value });
const embedded = (...args) => ({ type: 'resource', resource: document(...args) });
export const say = (...contents) => ({ messages: contents.map(content => ({ role: 'user', content })) });

/** The keywords of JSON Schema 2020-12 that have to survive the way to the client. */
export const wideSchema = {
  $schema: 'https://json-schema.org/draft/2020-12/schema',
  type: 'object',
  $defs: {
    address: {
      $anchor: 'addressDef',
      type: 'object',
      properties: { street: { type: 'string' }, city: { type: 'string' } },
    },
  },
  properties: {
    name: { type: 'string' },
    address: { $ref: '#/$defs/address' },
    contactMethod: { type: 'string', enum: ['phone', 'email'] },
    phone: { type: 'string' },
    email: { type: 'string' },
  },
  allOf: [{ anyOf: [{ required: ['phone'] }, { required: ['email'] }] }],
  if: { properties: { contactMethod: { const: 'phone' } }, required: ['contactMethod'] },
  then: { required: ['phone'] },
  else: { required: ['email'] },
  additionalProperties: false,
};

/**
 * Registers everything. `dialect` is what differs between the SDKs: `shape(fields)` makes a schema of arguments,
 * `ResourceTemplate` and `completable` are the SDK's own, `wide` is `wideSchema` as the SDK takes it, and
 * `progress(context)` gives the token of the request and a function that sends a notification beside it.
 */
export function offer(server, dialect) {
  offerTools(server, dialect);
  offerResources(server, dialect);
  offerPrompts(server, dialect);
}

function offerTools(server, { progress, wide }) {
  const tool = (name, description, run) => server.registerTool(name, { description }, run);
  tool('test_simple_text', 'Answers with text', answer(text('This is a simple text response for testing.')));
  tool('test_image_content', 'Answers with a picture', answer(image));
  tool('test_audio_content', 'Answers with sound', answer({ type: 'audio', data: WAV, mimeType: 'audio/wav' }));
  tool(
    'test_embedded_resource',
    'Answers with a resource inside',
    answer(embedded('test://embedded-resource', 'text/plain', 'This is an embedded resource content.')),
  );
  tool(
    'test_multiple_content_types',
    'Answers with several kinds at once',
    answer(
      text('Multiple content types test:'),
      image,
      embedded('test://mixed-content-resource', 'application/json', JSON.stringify({ test: 'data', value: 123 })),
    ),
  );
  tool('test_error_handling', 'Always fails', () => {
    throw new Error('This tool intentionally returns an error for testing');
  });
  tool('test_tool_with_progress', 'Says how far it is', async context => {
    const { token, notify } = progress(context);
    for (const done of [0, 50, 100]) {
      const params = { progressToken: token, progress: done, total: 100 };
      if (token !== undefined) await notify({ method: 'notifications/progress', params });
      // Apart in time, so that a stream that is held back to its end would show.
      if (done < 100) await pause(50);
    }
    return { content: [text(`done, the token was ${token}`)] };
  });
  const described = { description: 'Has a schema with more than the usual keywords', inputSchema: wide };
  server.registerTool('json_schema_2020_12_tool', described, answer(text('taken')));
}

function offerResources(server, { ResourceTemplate }) {
  const resource = (name, uri, mimeType, contents) =>
    server.registerResource(name, uri, { description: `The resource ${name}`, mimeType }, contents);
  resource('static-text', 'test://static-text', 'text/plain', ({ href }) => ({
    contents: [document(href, 'text/plain', 'This is the content of the static text resource.')],
  }));
  resource('static-binary', 'test://static-binary', 'image/png', ({ href }) => ({
    contents: [{ uri: href, mimeType: 'image/png', blob: PNG }],
  }));
  resource('watched-resource', 'test://watched-resource', 'text/plain', ({ href }) => ({
    contents: [document(href, 'text/plain', 'Somebody may be watching.')],
  }));
  const template = new ResourceTemplate('test://template/{id}/data', { list: undefined });
  resource('template', template, 'application/json', ({ href }, { id }) => {
    const filled = { id, templateTest: true, data: `Data for ID: ${id}` };
    return { contents: [document(href, 'application/json', JSON.stringify(filled))] };
  });
}

function offerPrompts(server, { shape, completable }) {
  const prompt = (name, fields, make) =>
    server.registerPrompt(
      name,
      { description: `The prompt ${name}`, ...(fields && { argsSchema: shape(fields) }) },
      make,
    );
  const cities = start => ['paris', 'park', 'party'].filter(city => city.startsWith(start));
  prompt('test_simple_prompt', undefined, () => say(text('This is a simple prompt for testing.')));
  prompt(
    'test_prompt_with_arguments',
    { arg1: completable(z.string().describe('first'), cities), arg2: z.string().describe('second') },
    ({ arg1, arg2 }) => say(text(`Prompt with arguments: arg1='${arg1}', arg2='${arg2}'`)),
  );
  prompt('test_prompt_with_embedded_resource', { resourceUri: z.string() }, ({ resourceUri }) =>
    say(
      embedded(resourceUri, 'text/plain', 'Embedded resource content for testing.'),
      text('Please process the embedded resource above.'),
    ),
  );
  prompt('test_prompt_with_image', undefined, () => say(image, text('Please analyze the image above.')));
}
